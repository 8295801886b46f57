"""The study from training to tables, on a tiny encoder: what the tables say is what the runs say."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from eeutils.data import tasks
from eeutils.errors import InputError
from eeutils.exiting import claims, tradeoff
from eeutils.exiting.rules import Rule, entropy, fixed, patience, policy
from eeutils.papers import badge, cascadebert, consistentee, deebert, finetuned, pabee
from eeutils.study import entries, page, tables
from eeutils.study.__main__ import main
from eeutils.training import runs, settings
from eeutils.training.method import Method
from eeutils.training.settings import Setting
from tests.tiny import tiny_task

ROOT = Path(__file__).parent.parent.parent
TINY = {"train_size": 48, "test_size": None, "epochs": 1, "max_length": 40}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def study(encoder_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Every method trained on the tiny task with two seeds, but for DE3-BERT's second, and the tables of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEUTILS_RUNS", str(tmp_path_factory.mktemp("study-runs")))
        patch.setattr(tasks, "load_task", lambda name, **sizes: tiny_task(name, sizes.get("train_size") or 48))
        patch.setitem(settings.PROFILES, "smoke", TINY)
        patch.setitem(cascadebert.SMALLER, encoder_folder, (encoder_folder,))
        patch.setattr(tables, "RESAMPLES", 20)
        for cache in (tasks.task_of, runs.samples_of):
            cache.cache_clear()
        for seed in SEEDS:
            setting = Setting.from_profile("smoke", "movie", encoder_folder, seed)
            for method in entries.method_names("movie", encoder_folder):
                if (method, seed) != ("de3bert", 1):
                    entries.train("smoke", setting, method)
        for rate in (0.5, 2.0):
            entries.train(
                "smoke", entries.at_rate(Setting.from_profile("smoke", "movie", encoder_folder, 0), rate), "deebert"
            )
        before = len(list(runs.runs_dir().iterdir()))
        frames = tables.tables("smoke", encoder_folder, ["movie", "amazon"], SEEDS)
        assert len(list(runs.runs_dir().iterdir())) == before, "reading must not train"
        yield SimpleNamespace(frames=frames, backbone=encoder_folder)
        for cache in (tasks.task_of, runs.samples_of):
            cache.cache_clear()


def setting_of(study: SimpleNamespace, seed: int, task: str = "movie") -> Setting:
    return Setting.from_profile("smoke", task, study.backbone, seed)


def test_every_table_is_there_with_its_columns_and_what_made_it(study: SimpleNamespace) -> None:
    assert set(study.frames) == set(page.COLUMNS)
    for name, frame in study.frames.items():
        assert list(frame.columns) == [*page.COLUMNS[name], *page.MADE_WITH]
        # Nothing was run on amazon, and nothing was timed.
        assert frame.task.unique().tolist() == ([] if name == "times" else ["movie"])
        assert not frame[["profile", "backbone", "commit"]].isna().any(axis=None)
    labels = {entry.label for entry in entries.ENTRIES}
    assert set(study.frames["curves"].method) == labels
    assert set(study.frames["scores"].method) == labels - {"oracle"}


def test_the_search_compares_learning_rates_on_dev_where_all_of_them_were_run(study: SimpleNamespace) -> None:
    search = study.frames["search"]
    assert search[["seed", "method", "in_use"]].to_numpy().tolist() == [
        [0, "DeeBERT", use] for use in (False, True, False)
    ]
    default = setting_of(study, 0).learning_rate
    assert search.learning_rate.tolist() == pytest.approx([0.5 * default, default, 2 * default])
    for row in search.itertuples():
        run = runs.load_or_train(deebert.METHOD, replace(setting_of(study, 0), learning_rate=row.learning_rate))
        assert row.dev_area == pytest.approx(
            tradeoff.area(tradeoff.sweep(run.dev, entropy(), run.metric), axis="layers")
        )
        assert row.dev_samples == run.dev.samples


def test_scores_are_those_of_the_runs(study: SimpleNamespace) -> None:
    scores = study.frames["scores"].set_index(["method", "axis", "speedup"]).sort_index()
    by_seed = [runs.load_or_train(pabee.METHOD, setting_of(study, seed)) for seed in SEEDS]
    # Of four layers, 2x is the second exit and 4x the first.
    for speedup, stage in ((1.0, 3), (2.0, 1), (4.0, 0)):
        right = [(run.test.predictions[stage] == run.test.labels).double().mean().item() for run in by_seed]
        assert scores.loc[("fixed exits", "layers", speedup)].score == pytest.approx(sum(right) / 2)
    curves = [tradeoff.sweep(run.test, entropy(), run.metric) for run in by_seed]
    wanted = sum(tradeoff.score_at(curve, 1.5, "layers") for curve in curves) / 2
    row, exits = (scores.loc[(name, "layers", 1.5)] for name in ("PABEE's exits, entropy", "fixed exits"))
    assert row.score == pytest.approx(wanted)
    assert row.low <= row.score <= row.high
    assert row.over_fixed == pytest.approx(row.score - exits.score)
    plain = scores.loc[("plain model", "layers", 1.0)]
    assert plain.kept == pytest.approx(1)
    assert row.kept == pytest.approx(row.score / plain.score)
    # By patience nobody leaves before the second exit.
    assert ("PABEE", "layers", 4.0) not in scores.index
    assert ("plain model", "layers", 1.5) not in scores.index


def test_the_best_of_a_speed_up_has_no_distance_and_the_others_one_to_it(study: SimpleNamespace) -> None:
    scores = study.frames["scores"]
    for _, rows in scores.groupby(["axis", "speedup"]):
        # DE3-BERT has one seed only: its distance is that of this seed, not that of the means.
        best, rows = rows.score.max(), rows[rows.method != "DE3-BERT"]
        for row in rows.itertuples():
            if row.score == best:
                assert math.isnan(row.over_best) or row.over_best == pytest.approx(0)
            elif best in rows.score.to_numpy():
                assert row.over_best == pytest.approx(row.score - best)
                assert row.over_best_low <= row.over_best <= row.over_best_high


def test_a_seed_that_was_not_run_is_not_in_the_tables(study: SimpleNamespace) -> None:
    assert study.frames["scores"].query("method == 'DE3-BERT'").seeds.unique().tolist() == [1]
    assert study.frames["scores"].query("method == 'PABEE'").seeds.unique().tolist() == [2]
    assert "DE3-BERT" not in set(study.frames["agreement"].method), "one seed agrees with nobody"


def test_the_one_speed_that_a_method_is_trained_for_is_told(study: SimpleNamespace) -> None:
    points = study.frames["points"]
    assert points[["method", "seed", "threshold"]].to_numpy().tolist() == [
        ["ConsistentEE", seed, 0.5] for seed in SEEDS
    ]
    for row in points.itertuples():
        run = runs.load_or_train(consistentee.METHOD, setting_of(study, row.seed))
        leave = run.test.extras["policy"] > 0.5
        leave[-1] = True
        stages = leave.long().argmax(dim=0)
        assert row.layer_speedup == pytest.approx(4 / (stages + 1).double().mean().item())
        right = run.test.predictions.gather(0, stages[None])[0] == run.test.labels
        assert row.score == pytest.approx(right.double().mean().item())


def test_the_oracle_is_one_point_where_the_first_right_exit_answers(study: SimpleNamespace) -> None:
    points = study.frames["curves"].query("method == 'oracle'").set_index("seed")
    assert len(points) == len(SEEDS)
    for seed in SEEDS:
        test = runs.load_or_train(pabee.METHOD, setting_of(study, seed)).test
        right = (test.predictions == test.labels).any(dim=0).double().mean().item()
        assert points.loc[seed].score == pytest.approx(right)


def test_claims_are_compared_at_equal_speed_over_the_seeds_that_both_sides_have(study: SimpleNamespace) -> None:
    rows = study.frames["claims"].set_index(["claim", "ours", "theirs", "speedup"])
    assert set(rows.index.get_level_values("claim")) <= set(claims.ledger())

    def mean_score(method: Method, rule: Rule, speedup: float) -> float:
        made = [runs.load_or_train(method, setting_of(study, seed)) for seed in SEEDS]
        curves = [tradeoff.sweep(run.test, rule, run.metric) for run in made]
        return sum(tradeoff.score_at(curve, speedup, "layers") for curve in curves) / len(SEEDS)

    divergence = next(iter(badge.METHOD.rules.values()))
    row = rows.loc[("B4", "BADGE", "BADGE by entropy", 1.5)]
    wanted = mean_score(badge.METHOD, divergence, 1.5) - mean_score(badge.METHOD, entropy(), 1.5)
    assert row.difference == pytest.approx(wanted)
    assert row.low <= row.difference <= row.high
    assert row.seeds == 2
    # One side early, the other after all layers.
    wanted = mean_score(consistentee.METHOD, policy(), 1.8) - mean_score(finetuned.METHOD, fixed(), 1.0)
    assert rows.loc[("K1", "ConsistentEE", "plain model at 1x", 1.8)].difference == pytest.approx(wanted)
    means = [
        sum((run.test.predictions == run.test.labels).double().mean().item() for run in made) / len(SEEDS)
        for made in (
            [runs.load_or_train(method, setting_of(study, seed)) for seed in SEEDS]
            for method in (badge.METHOD, pabee.METHOD)
        )
    ]
    row = rows.loc[("B1a", "BADGE, mean over exits", "PABEE, mean over exits", 1.0)]
    assert row.difference == pytest.approx(means[0] - means[1])
    assert rows.xs("E1", level="claim").seeds.unique().tolist() == [1], "DE3-BERT has one seed"
    table = page.across_table(study.frames["claims"])
    assert table.columns.tolist() == ["comparison", "Movie reviews, polarity", "verdict"]
    assert table.loc["K1"].comparison == "ConsistentEE minus plain model at 1x; at 1.8x (layers)"
    assert set(table.verdict) <= {"", claims.REPRODUCED, claims.PARTLY, claims.NOT_REPRODUCED, claims.NOT_TESTABLE}


def test_schedules_and_shallow_models_make_curves_of_several_runs(study: SimpleNamespace) -> None:
    curves = study.frames["curves"].query("seed == 0")
    shallow = curves[curves.method == "k-layer models"]
    assert sorted(shallow.layer_speedup.round(3)) == [1.0, 2.0]
    run = runs.load_or_train(finetuned.METHOD, setting_of(study, 0), layers=2)
    at_two = shallow[shallow.layer_speedup.round(3) == 2.0].score.item()
    assert at_two == pytest.approx(tradeoff.fixed_exits(run.test, run.metric).score.item())
    hashed = curves[curves.method == "HashEE"].sort_values("layer_speedup")
    assert hashed.layer_speedup.iloc[0] == pytest.approx(1)
    assert hashed.layer_speedup.iloc[-1] > 1.2


def test_agreement_is_the_share_of_equal_answers(study: SimpleNamespace) -> None:
    answers = [runs.load_or_train(deebert.METHOD, setting_of(study, seed)).test.predictions for seed in SEEDS]
    rows = study.frames["agreement"].query("method == 'DeeBERT'").sort_values("layer")
    assert rows.layer.tolist() == [1, 2, 3, 4]
    assert rows.agreement.tolist() == pytest.approx((answers[0] == answers[1]).double().mean(dim=1).tolist())


def test_training_counts_the_runs_that_a_run_starts_from(study: SimpleNamespace) -> None:
    costs = study.frames["costs"].set_index("method")
    seconds = [
        sum(
            runs.load_or_train(m, setting_of(study, seed)).history.seconds.sum()
            for m in (deebert.METHOD, finetuned.METHOD)
        )
        for seed in SEEDS
    ]
    assert costs.loc["DeeBERT"].training_seconds == pytest.approx(sum(seconds) / 2)
    assert costs.trainings[["plain model", "DeeBERT", "k-layer models", "PABEE", "ConsistentEE"]].tolist() == [
        1,
        2,
        2,
        1,
        2,
    ]
    assert costs.times_plain["plain model"] == pytest.approx(1)
    weights = runs.load_or_train(finetuned.METHOD, setting_of(study, 0)).model().parameters()
    assert costs.parameters["plain model"] == sum(weight.numel() for weight in weights)


def test_every_run_is_listed_once_with_its_configuration(study: SimpleNamespace) -> None:
    listed = study.frames["runs"]
    assert not listed.key.duplicated().any()
    shallow = listed[(listed.run == "finetuned") & (listed.options != "")]
    assert [json.loads(options) for options in shallow.options] == [{"layers": 2}] * len(SEEDS)
    for key in listed.key:
        assert list(runs.runs_dir().glob(f"*-{key}"))


def test_time_is_measured_at_twice_the_speed_chosen_on_dev(
    study: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "TIMED", {1: 4, 8: 24})
    times = tables.measure("smoke", setting_of(study, 0))
    assert list(times.columns) == list(page.COLUMNS["times"])
    assert (times.wall_low <= times.wall_speedup).all()
    assert (times.wall_speedup <= times.wall_high).all()
    rows = times[times.batch == 8].set_index("method")
    assert {"PABEE", "HashEE", "k-layer models", "CascadeBERT", "fixed exits"} <= set(rows.index)
    # All 24 test sentences are timed: two exits are twice as fast whichever sentences they are.
    assert rows.layer_speedup["fixed exits"] == pytest.approx(2)
    assert rows.layer_speedup["k-layer models"] == pytest.approx(2)
    run = runs.load_or_train(pabee.METHOD, setting_of(study, 0))
    threshold = tradeoff.threshold_for_speedup(run.dev, patience(), 2.0, "layers")
    wanted = tradeoff.at_threshold(run.test, patience(), run.metric, threshold)["layer_speedup"]
    assert rows.layer_speedup["PABEE"] == pytest.approx(wanted)


def test_a_regression_takes_the_methods_that_mean_something_there(study: SimpleNamespace) -> None:
    setting = setting_of(study, 0, "movie-valence")
    names = entries.method_names(setting.task, study.backbone)
    assert names == ["pabee", "hashee", "finetuned"]
    for name in names:
        entries.train("smoke", setting, name)
    frames = tables.tables("smoke", study.backbone, ["movie-valence"], [0])
    assert {"PABEE", "HashEE", "fixed exits", "k-layer models"} <= set(frames["scores"].method)
    assert len(frames["calibration"]) == 0


def test_without_a_smaller_encoder_there_is_no_cascade() -> None:
    assert "cascadebert" in entries.method_names("movie", "minilm-l6")
    assert "cascadebert" not in entries.method_names("movie", "minilm-l3")


def test_the_command_line_writes_what_it_reads(study: SimpleNamespace, tmp_path: Path) -> None:
    times = tmp_path / "movie.csv"
    pd.DataFrame([{"task": "movie", "method": "PABEE", "batch": 1}]).to_csv(times, index=False)
    main(
        [
            "tables",
            "smoke",
            study.backbone,
            str(tmp_path),
            "--tasks",
            "movie",
            "--seeds",
            "0",
            "1",
            "--times",
            str(times),
        ]
    )
    for name in page.COLUMNS:
        assert len(page.read_table(name, tmp_path)) > 0
    assert page.read_table("times", tmp_path).profile.tolist() == ["smoke"]


def test_unknown_names_are_refused_in_a_sentence(study: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"unknown method of the study on movie 'pabbe' \(did you mean 'pabee'"):
        entries.train("smoke", setting_of(study, 0), "pabbe")
    with pytest.raises(InputError, match="nothing of the study has been run"):
        tables.tables("smoke", study.backbone, ["amazon"], [0])
    with pytest.raises(SystemExit, match="error: unknown task 'moive'"):
        main(["train", "smoke", "moive", study.backbone, "0", "pabee"])


def planned(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    snakemake = [sys.executable, "-m", "snakemake", "study", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    options = ["--directory", str(folder), "--nolock", "--dry-run", "--config", "profile=smoke", *arguments]
    return subprocess.run([*snakemake, *options], capture_output=True, text=True, check=False)


def test_make_study_plans_a_job_for_every_task_seed_and_method(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tasks=movie movie-valence", "seeds=0 1")
    assert plan.returncode == 0, plan.stderr
    methods = [entries.method_names(task, "minilm-l6") for task in ("movie", "movie-valence")]
    counts = dict(line.split() for line in plan.stdout.splitlines() if line.startswith("study_"))
    assert counts == {
        "study_train": str(2 * sum(map(len, methods))),
        "study_times": "2",
        "study_tables": "1",
    }


def test_make_study_searches_one_task_and_seed_with_the_same_budget_for_every_method(tmp_path: Path) -> None:
    plan = planned(tmp_path, "profile=quick", "tasks=movie amazon mrpc", "seeds=0 1")
    assert plan.returncode == 0, plan.stderr
    counts = dict(line.split() for line in plan.stdout.splitlines() if line.startswith("study_"))
    # MRPC has a learning rate of its own, so its k-layer models are searched, too.
    assert counts["study_search"] == str(2 * len(entries.method_names("movie", "minilm-l6")) + 2)


def test_make_study_refuses_an_unknown_task_before_anything_runs(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tasks=moive")
    assert plan.returncode != 0
    assert "unknown task 'moive'" in plan.stderr
    assert "Traceback" not in plan.stderr
