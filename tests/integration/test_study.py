"""The study from training to tables, on a tiny encoder: what the tables say is what the runs say."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from eeutils.data import tasks
from eeutils.errors import InputError
from eeutils.exiting import claims, tradeoff
from eeutils.exiting.rules import Rule, entropy, patience
from eeutils.models.schedule import FUNCTIONS
from eeutils.papers import (
    badge,
    cascadebert,
    consistentee,
    deebert,
    ensemble,
    finetuned,
    hashee,
    pabee,
    smartbert,
    treatments,
)
from eeutils.papers.comparisons import ABOUT_TREATMENTS
from eeutils.study import entries, page, plan, sentences, tables
from eeutils.study.__main__ import main
from eeutils.training import runs, settings
from eeutils.training.method import Method
from eeutils.training.runs import Run
from eeutils.training.settings import Setting
from tests.tiny import tiny_task

ROOT = Path(__file__).parent.parent.parent
TINY = {"train_size": 48, "test_size": None, "epochs": 1, "max_length": 40}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def study(encoder_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Every method trained on the tiny task with two seeds, but for DE3-BERT's second, DeeBERT's search, and the tables
    of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEUTILS_RUNS", str(tmp_path_factory.mktemp("study-runs")))
        patch.setattr(tasks, "load_task", lambda name, **sizes: tiny_task(name, sizes.get("train_size") or 48))
        patch.setitem(settings.PROFILES, "smoke", TINY)
        patch.setitem(settings.PROFILES, entries.SEARCHED, TINY)
        patch.setitem(cascadebert.SMALLER, encoder_folder, (encoder_folder,))
        patch.setattr(tables, "RESAMPLES", 20)
        for cache in (tasks.task_of, runs.samples_of):
            cache.cache_clear()
        for seed in SEEDS:
            setting = Setting.from_profile("smoke", "movie", encoder_folder, seed)
            for method in entries.method_names("movie", encoder_folder):
                if (method, seed) != ("de3bert", 1):
                    entries.train("smoke", setting, method)
        entries.train_search(Setting.from_profile(entries.SEARCHED, "movie", encoder_folder, 0), "deebert")
        before = len(list(runs.runs_dir().iterdir()))
        frames = tables.tables("smoke", encoder_folder, ["movie", "amazon"], SEEDS)
        assert len(list(runs.runs_dir().iterdir())) == before, "reading must not train"
        yield SimpleNamespace(frames=frames, backbone=encoder_folder)
        for cache in (tasks.task_of, runs.samples_of):
            cache.cache_clear()


def setting_of(study: SimpleNamespace, seed: int, task: str = "movie") -> Setting:
    return Setting.from_profile("smoke", task, study.backbone, seed)


def made(study: SimpleNamespace, method: Method, **options: Any) -> list[Run]:
    """The runs of a method, one a seed."""
    found = [runs.find(method, setting_of(study, seed), **options) for seed in SEEDS]
    assert all(found)
    return found


def scores_of(run: Run) -> list[float]:
    """What each stage scores on test."""
    return (run.test.predictions == run.test.labels).double().mean(dim=1).tolist()


def test_every_table_is_there_with_its_columns_and_what_made_it(study: SimpleNamespace) -> None:
    assert set(study.frames) == set(page.COLUMNS)
    for name, frame in study.frames.items():
        assert list(frame.columns) == [*page.COLUMNS[name], *page.MADE_WITH]
        # Nothing was run on amazon, and nothing was timed.
        assert frame.task.unique().tolist() == ([] if name == "times" else ["movie"])
        assert not frame[["profile", "backbone", "commit"]].isna().any(axis=None)
        assert name == "times" or not frame.isna().all().any(), f"a column of {name} that nobody fills"
    labels = {entry.label for entry in entries.ENTRIES}
    assert set(study.frames["curves"].method) == labels
    # One model of one speed is at none of the speed-ups at which scores are compared.
    points = {entries.hash_label(function) for function in FUNCTIONS}
    # Gates have a width of their own, which makes them dearer than all layers of so small an encoder.
    too_slow = {smartbert.METHOD.title}
    assert set(study.frames["scores"].method) == labels - {"oracle"} - points - too_slow


def test_the_search_has_every_trial_on_dev_beside_the_default(study: SimpleNamespace) -> None:
    search = study.frames["search"].query("method == 'DeeBERT'").reset_index()
    assert search.groupby("what", sort=False).value.apply(list).to_dict() == {
        "learning rate, times": [0.5, 1.0, 2.0],
        "rate of heads, times": [1.0, 3.0, 10.0, 30.0],
    }
    assert search.in_use.tolist() == (search.value == 1).tolist()
    default, setting = made(study, deebert.METHOD)[0], setting_of(study, 0)
    trials = entries.search_of(entries.budget_of(entries.SEARCHED, 4))["DeeBERT"]
    found = [trial.wanted.find(setting) for trial in trials]
    assert [run.setting.learning_rate / setting.learning_rate for run in found[:3]] == pytest.approx([0.5, 1.0, 2.0])
    assert [run.setting.head_rate / setting.head_rate for run in found[3:]] == pytest.approx([1.0, 3.0, 10.0, 30.0])
    # From the speed-up that all of them reach: every sample at the first exit.
    evidence = default.dev
    cheapest = float(evidence.cost["flops"][0].mean() / evidence.reference["flops"].mean())
    for row, run in zip(search.itertuples(), found, strict=True):
        curve, thinned = (tradeoff.sweep(run.dev, entropy(), run.metric, points=points) for points in (101, 24))
        usual = tradeoff.sweep(default.dev, entropy(), run.metric, points=24)
        assert row.dev_area == pytest.approx(tradeoff.area(curve, low=cheapest))
        gap = tradeoff.area(thinned, low=cheapest) - tradeoff.area(usual, low=cheapest)
        assert row.over_default == pytest.approx(gap)
        assert row.over_default_low <= row.over_default <= row.over_default_high
        assert row.dev_samples == run.dev.samples
    # Whoever has nothing beside its default was not searched. Of one model, which has no curve, its score.
    assert not {"PABEE", "BADGE"} & set(study.frames["search"].method)
    [plain] = study.frames["search"].query("method == 'plain model' and in_use").dev_area
    dev = made(study, finetuned.METHOD)[0].dev
    assert plain == pytest.approx((dev.predictions[-1] == dev.labels).double().mean().item())


def test_scores_are_those_of_the_runs(study: SimpleNamespace) -> None:
    scores = study.frames["scores"].set_index(["method", "axis", "speedup"]).sort_index()
    by_seed = made(study, pabee.METHOD)
    # Of four layers, 2x is the second exit and 4x the first.
    for speedup, stage in ((1.0, 3), (2.0, 1), (4.0, 0)):
        wanted = fmean(scores_of(run)[stage] for run in by_seed)
        assert scores.loc[("fixed exits", "layers", speedup)].score == pytest.approx(wanted)
    for axis in ("layers", "flops"):
        curves = [tradeoff.sweep(run.test, entropy(), run.metric) for run in by_seed]
        row = scores.loc[("PABEE's exits, entropy", axis, 1.5)]
        assert row.score == pytest.approx(fmean(tradeoff.score_at(curve, 1.5, axis) for curve in curves))
        assert row.low <= row.score <= row.high
    plain = scores.loc[("plain model", "layers", 1.0)]
    assert plain.kept == pytest.approx(1)
    assert row.kept == pytest.approx(row.score / plain.score)
    # By patience nobody leaves before the second exit.
    assert ("PABEE", "layers", 4.0) not in scores.index
    assert ("plain model", "layers", 1.5) not in scores.index


def test_distances_to_blind_policies_are_those_of_the_checkpoints_that_are_no_controls(study: SimpleNamespace) -> None:
    scores = study.frames["scores"].set_index(["method", "axis", "speedup"]).sort_index()
    results = [
        [entries.result_of(entry, "smoke", setting_of(study, seed)) for entry in entries.ENTRIES] for seed in SEEDS
    ]
    for speedup in (1.5, 2.0):
        row, everybody, own, score = scores.loc[("PABEE's exits, entropy", "flops", speedup)], [], [], []
        for of_seed, run in zip(results, made(study, pabee.METHOD), strict=True):
            labels = run.test.labels.numpy()
            checkpoints = [
                (result.dev, result.test)
                for result in of_seed
                if result
                and result.entry.kind in (entries.METHOD, entries.BASELINE)
                # A policy and a schedule of words have looked at the sample.
                and result.entry.label not in ("ConsistentEE", "HashEE")
            ]
            for wanted, among in ((everybody, checkpoints), (own, [(run.dev, run.test)])):
                wanted.append(tradeoff.blind_policy(among, speedup, run.metric).score(run.metric, labels))
            score.append(tradeoff.score_at(tradeoff.sweep(run.test, entropy(), run.metric), speedup))
        assert row.over_blind == pytest.approx(fmean(score) - fmean(everybody))
        assert row.over_own == pytest.approx(fmean(score) - fmean(own))
        assert row.over_blind_low <= row.over_blind <= row.over_blind_high
    # A curve of several models is a blind policy itself: it has none of its own to beat.
    assert scores.xs("k-layer models").over_own.isna().all()


def test_the_best_of_a_speed_up_has_no_distance_and_the_others_one_to_it(study: SimpleNamespace) -> None:
    scores = study.frames["scores"]
    one_seed = scores[scores.seeds == 1].method.unique()  # its distance is that of this seed, not that of the means
    for _, rows in scores.groupby(["axis", "speedup"]):
        best = rows[rows.kind != "control"].score.max()
        if best in rows[rows.method.isin(one_seed)].score.to_numpy():
            continue
        for row in rows[~rows.method.isin(one_seed)].itertuples():
            if row.score == best and math.isnan(row.over_best):
                continue
            assert row.over_best == pytest.approx(row.score - best)
            assert row.over_best_low <= row.over_best <= row.over_best_high


def test_a_seed_that_was_not_run_is_not_in_the_tables(study: SimpleNamespace) -> None:
    scores = study.frames["scores"]
    assert set(scores[scores.seeds == 1].method) == {"DE3-BERT", "DE3-BERT, prototypes answer"}
    assert scores.query("method == 'PABEE'").seeds.unique().tolist() == [2]


def test_models_that_are_trained_for_one_speed_stand_where_their_policy_sends_samples(study: SimpleNamespace) -> None:
    points = study.frames["points"].set_index(["method", "seed"]).sort_index()
    # At a constant price a layer costs as much on average.
    constant = {"hardness": "constant", "speed_weight": 0.108}
    for label, options in (("ConsistentEE", {}), ("ConsistentEE, constant price", constant)):
        for seed, run in enumerate(made(study, consistentee.METHOD, **options)):
            leave = run.test.extras["policy"] > 0.5
            leave[-1] = True
            stages = leave.long().argmax(dim=0)
            right = run.test.predictions.gather(0, stages[None])[0] == run.test.labels
            [row] = points.loc[[(label, seed)]].itertuples()
            assert row.threshold == 0.5
            assert row.layer_speedup == pytest.approx(4 / (stages + 1).double().mean().item())
            assert row.score == pytest.approx(right.double().mean().item())


def test_the_oracle_is_one_point_where_the_first_right_exit_answers(study: SimpleNamespace) -> None:
    points = study.frames["curves"].query("method == 'oracle'").set_index("seed")
    assert len(points) == len(SEEDS)
    for seed, run in enumerate(made(study, pabee.METHOD)):
        right = (run.test.predictions == run.test.labels).any(dim=0).double().mean().item()
        assert points.loc[seed].score == pytest.approx(right)


def test_claims_are_compared_at_equal_flops_over_the_seeds_that_both_sides_have(study: SimpleNamespace) -> None:
    rows = study.frames["claims"].set_index(["claim", "ours", "theirs", "speedup"]).sort_index()
    assert set(rows.index.get_level_values("claim")) <= set(claims.ledger())

    def mean_score(method: Method, rule: Rule, speedup: float, axis: str = "flops") -> float:
        curves = [tradeoff.sweep(run.test, rule, run.metric) for run in made(study, method)]
        return fmean(tradeoff.score_at(curve, speedup, axis) for curve in curves)

    divergence = next(iter(badge.METHOD.rules.values()))
    row = rows.loc[("B4a", "BADGE", "BADGE by entropy", 1.5)]
    wanted = mean_score(badge.METHOD, divergence, 1.5) - mean_score(badge.METHOD, entropy(), 1.5)
    assert row.difference == pytest.approx(wanted)
    assert row.low <= row.difference <= row.high
    assert (row.axis, row.seeds, row.units) == ("flops", 2, 24)
    # One side early, the other after all layers, and layers where the paper has them.
    row = rows.loc[("D1", "DeeBERT", "DeeBERT by fixed exits at 1x", 1 / 0.86)]
    last = fmean(scores_of(run)[-1] for run in made(study, deebert.METHOD))
    assert row.axis == "layers"
    assert row.difference == pytest.approx(mean_score(deebert.METHOD, entropy(), 1 / 0.86, "layers") - last)
    row = rows.loc[("B1a", "BADGE, mean over exits", "PABEE, mean over exits", 1.0)]
    means = [fmean(fmean(scores_of(run)) for run in made(study, m)) for m in (badge.METHOD, pabee.METHOD)]
    assert row.difference == pytest.approx(means[0] - means[1])
    row = rows.loc[("B1b", "BADGE, last exit", "PABEE, last exit", 1.0)]
    means = [fmean(scores_of(run)[-1] for run in made(study, m)) for m in (badge.METHOD, pabee.METHOD)]
    assert row.difference == pytest.approx(means[0] - means[1])
    row = rows.loc[("H1a", "HashEE, random-type", "HashEE, random-occurrence", 1.0)]
    means = [
        fmean(scores_of(run)[-1] for run in made(study, hashee.METHOD, function=function))
        for function in ("random-type", "random-occurrence")
    ]
    assert row.difference == pytest.approx(means[0] - means[1])
    assert rows.xs("E1a", level="claim").seeds.unique().tolist() == [1], "DE3-BERT has one seed"


def test_what_has_not_learned_is_named_beside_every_comparison_and_what_did_not_take_where_it_is_the_claim(
    study: SimpleNamespace,
) -> None:
    results = {
        entry.label: [entries.result_of(entry, "smoke", setting_of(study, 0))]
        for entry in entries.ENTRIES
        if entry.label in ("BADGE", "PABEE", "DeeBERT", "plain model", "BADGE, wide-head")
    }
    failed = {"method": "PABEE", "layer": 2, "learned": False}
    gate = [{**failed, "layer": 1, "learned": True}, failed]
    checks = [{"seed": seed, "method": "BADGE", "found": f"adds {seed}%", "took": seed == 2} for seed in range(3)]
    unlearned, untreated = "PABEE: the exit at layer 2 has not learned", "BADGE: the treatment did not take (adds 0%)"
    rows = {row["claim"]: row["unfit"] for row in tables.comparisons(results, gate, checks)}
    assert rows["D1"] == ""
    # What a bypass does to exits cannot be said of one that does nothing; which rule is better still can.
    assert rows["B2"] == untreated
    assert rows["B4a"] == ""
    assert rows["B1a"] == f"{untreated}; {unlearned}"
    checks[1]["took"] = True  # on two of three seeds it took
    assert {row["claim"]: row["unfit"] for row in tables.comparisons(results, gate, checks)}["B1a"] == unlearned


def test_the_tables_say_of_every_comparison_what_gate_and_treatments_say(study: SimpleNamespace) -> None:
    gate, checks = study.frames["gate"], study.frames["treatments"]
    unlearned = set(gate[~gate.learned.astype(bool)].method)
    untreated = {label for label, rows in checks.groupby("method") if rows.took.mean() <= 0.5}
    assert unlearned | untreated, "two steps teach nobody everything"
    for row in study.frames["claims"].itertuples():
        names = {
            side.split(" by ")[0].split(" at ")[0].removesuffix(", mean over exits").removesuffix(", last exit")
            for side in (row.ours, row.theirs)
        }
        failed = names & (unlearned | untreated if row.claim in ABOUT_TREATMENTS else unlearned)
        assert all(f"{name}:" in row.unfit for name in failed), row
        assert (row.unfit == "") == (not failed), row


def test_the_gate_compares_each_checkpoint_s_exits_with_its_probes_once(study: SimpleNamespace) -> None:
    gate = study.frames["gate"]
    assert not gate[["method", "layer"]].duplicated().any()
    # One checkpoint is PABEE's, by whatever rule it is left; a single exit and a cascade have no probes.
    assert not set(gate.method) & {"PABEE's exits, entropy", "fixed exits", "random exits", "oracle"}
    assert not set(gate.method) & {"plain model", "k-layer models", "HashEE", "CascadeBERT"}
    rows = gate.query("method == 'DeeBERT'")
    assert rows.layer.tolist() == [1, 2, 3, 4]
    by_seed = made(study, deebert.METHOD)
    for row in rows.itertuples():
        exits, probes = (
            fmean((side.predictions[row.layer - 1] == side.labels).double().mean().item() for side in sides)
            for sides in ([run.dev for run in by_seed], [run.probe_dev for run in by_seed])
        )
        assert (row.exit, row.probe, row.gap) == pytest.approx((exits, probes, exits - probes))
        assert row.learned == (row.gap >= -max(0.01, (row.high - row.low) / 2))


def test_treatments_are_checked_seed_by_seed(study: SimpleNamespace) -> None:
    checks = study.frames["treatments"].set_index(["method", "seed"])
    assert checks.index.tolist() == [
        *((method, seed) for method in ("BADGE", "CascadeBERT") for seed in SEEDS),
        ("DE3-BERT", 0),
        *((method, seed) for method in ("ensemble exits", "SmartBERT", "L2W-DEN", "ConsistentEE") for seed in SEEDS),
    ]
    for seed, run in enumerate(made(study, badge.METHOD)):
        assert checks.loc[("BADGE", seed)].found == treatments.bypass(run).found
    pairs = zip(made(study, ensemble.METHOD, diversity=0.1), made(study, ensemble.METHOD, diversity=0.0), strict=True)
    for seed, (ours, without) in enumerate(pairs):
        check = treatments.diversity(ours, without)
        assert (checks.loc[("ensemble exits", seed)].found, checks.loc[("ensemble exits", seed)].took) == (
            check.found,
            check.took,
        )


def test_schedules_and_shallow_models_make_curves_of_several_runs(study: SimpleNamespace) -> None:
    curves = study.frames["curves"].query("seed == 0")
    shallow = curves[curves.method == "k-layer models"]
    assert sorted(shallow.layer_speedup.round(3)) == [1.0, 2.0]
    [score] = scores_of(made(study, finetuned.METHOD, layers=2)[0])
    assert shallow[shallow.layer_speedup.round(3) == 2.0].score.item() == pytest.approx(score)
    hashed = curves[curves.method == "HashEE"].sort_values("layer_speedup")
    assert len(hashed) == 3
    assert hashed.layer_speedup.iloc[0] == pytest.approx(1)
    assert hashed.layer_speedup.iloc[-1] > 1.2


def test_training_counts_the_runs_that_a_run_starts_from(study: SimpleNamespace) -> None:
    costs = study.frames["costs"].set_index("method")

    def seconds(*methods: Method) -> list[float]:
        return [sum(made(study, method)[seed].history.seconds.sum() for method in methods) for seed in SEEDS]

    assert costs.loc["DeeBERT"].training_seconds == pytest.approx(fmean(seconds(deebert.METHOD, finetuned.METHOD)))
    wanted = {"plain model": 1, "DeeBERT": 2, "k-layer models": 2, "PABEE": 1, "ConsistentEE": 3, "HashEE": 3}
    assert costs.trainings[list(wanted)].to_dict() == wanted
    assert costs.times_plain["plain model"] == pytest.approx(1)
    weights = made(study, finetuned.METHOD)[0].model().parameters()
    assert costs.parameters["plain model"] == sum(weight.numel() for weight in weights)
    # The whole curve of k-layer models takes both, the point at 2x the one of two layers.
    plain, halves = (
        seconds(finetuned.METHOD),
        [run.history.seconds.sum() for run in made(study, finetuned.METHOD, layers=2)],
    )
    row = costs.loc["k-layer models"]
    assert row.times_plain == pytest.approx(fmean((p + half) / p for p, half in zip(plain, halves, strict=True)))
    assert row.point_times_plain == pytest.approx(fmean(half / p for p, half in zip(plain, halves, strict=True)))
    # One checkpoint: the same for a point and for the curve.
    assert costs.point_times_plain["PABEE"] == costs.times_plain["PABEE"]


def test_every_run_is_listed_once_with_its_configuration(study: SimpleNamespace) -> None:
    listed = study.frames["runs"]
    assert not listed.key.duplicated().any()
    shallow = listed[(listed.run == "finetuned") & (listed.options != "")]
    assert [json.loads(options) for options in shallow.options] == [{"layers": 2}] * len(SEEDS)
    plain = listed[(listed.run == "finetuned") & (listed.options == "") & (listed.seed == 0)].sort_values("epochs")
    # 48 samples in batches of 32, once and twice.
    assert plain[["epochs", "steps"]].to_numpy().tolist() == [[1, 2], [2, 4]]
    for key in listed.key:
        assert list(runs.runs_dir().glob(f"*-{key}"))


def test_time_is_measured_at_twice_the_speed_chosen_on_dev(
    study: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "TIMED", {1: 4, 8: 24})
    times = tables.measure("smoke", setting_of(study, 0))
    assert list(times.columns) == list(page.COLUMNS["times"])
    assert not times.isna().any(axis=None)
    assert (times.wall_low <= times.wall_speedup).all()
    assert (times.wall_speedup <= times.wall_high).all()
    rows = times[times.batch == 8].set_index("method")
    assert {"PABEE", "HashEE", "k-layer models", "CascadeBERT", "fixed exits", "ConsistentEE"} <= set(rows.index)
    assert not set(rows.index) & {"plain model", "random exits", "oracle", "plain sum"}
    # All 24 test sentences are timed: two exits are twice as fast whichever sentences they are.
    assert rows.layer_speedup["fixed exits"] == pytest.approx(2)
    assert rows.layer_speedup["k-layer models"] == pytest.approx(2)
    run = made(study, pabee.METHOD)[0]
    threshold = tradeoff.threshold_for_speedup(run.dev, patience(), 2.0)
    wanted = tradeoff.at_threshold(run.test, patience(), run.metric, threshold)["flops_speedup"]
    assert rows.flops_speedup["PABEE"] == pytest.approx(wanted)


def test_a_regression_takes_the_methods_that_mean_something_there(study: SimpleNamespace) -> None:
    setting = setting_of(study, 0, "movie-valence")
    names = entries.method_names(setting.task, study.backbone)
    assert names == ["pabee", "hashee", "finetuned", "berxit"]
    for name in names:
        entries.train("smoke", setting, name)
    frames = tables.tables("smoke", study.backbone, ["movie-valence"], [0])
    assert set(frames["scores"].method) <= {entry.label for entry in entries.ENTRIES if entry.regression}
    assert {"PABEE", "HashEE", "fixed exits", "k-layer models"} <= set(frames["scores"].method)
    assert set(frames["gate"].method) == {"PABEE", "BERxiT"}
    assert len(frames["treatments"]) == 0


def test_controls_are_trained_where_they_tell_and_no_control_is_the_best(study: SimpleNamespace) -> None:
    elsewhere = entries.entries_for("mrpc", study.backbone)
    assert not [entry for entry in elsewhere if entry.kind == entries.CONTROL]
    assert "de3bert_unregularised" in entries.method_names("movie", study.backbone)
    assert "de3bert_unregularised" not in entries.method_names("mrpc", study.backbone)


def test_without_a_smaller_encoder_there_is_no_cascade() -> None:
    assert "cascadebert" in entries.method_names("movie", "minilm-l6")
    assert "cascadebert" not in entries.method_names("movie", "minilm-l3")


def test_the_command_line_writes_what_the_page_reads(study: SimpleNamespace, tmp_path: Path) -> None:
    times = tmp_path / "movie.csv"
    timed = {"task": "movie", "method": "PABEE", "batch": 1, "flops_speedup": 2.0, "wall_speedup": 1.5}
    pd.DataFrame([timed]).to_csv(times, index=False)
    arguments = ["tables", "smoke", study.backbone, str(tmp_path), "--tasks", "movie", "--seeds", "0"]
    main([*arguments, "--times", str(times)])
    read = {name: page.read_table(name, tmp_path) for name in page.COLUMNS}
    assert all(len(table) > 0 for table in read.values())
    assert read["times"].profile.tolist() == ["smoke"]
    # Everything that the scoreboard shows can be made of what was written.
    scores, costs = read["scores"], read["costs"]
    assert sentences.trained_on(read["runs"], ["movie"]) == [
        "Movie reviews, polarity: 1 seed(s), 48 training samples, 1 epoch(s) or 2 steps a phase, learning rate 0.0001."
    ]
    learned = scores.assign(low=scores.score, blind=0.0)
    use = page.what_to_use(learned, costs)
    assert "a class at 2x" in use.index
    assert sentences.headlines(learned, costs)[0].startswith(f"At 2x in FLOPs take {use.loc['a class at 2x', 'take']}")
    assert page.cost_table(costs, read["times"], "movie").loc["PABEE", "clock, batch 1"] == "1.50x"
    assert set(page.gate_table(read["gate"], "movie").columns) == {f"layer {layer}" for layer in (1, 2, 3, 4)}
    assert page.treatment_table(read["treatments"], "movie").loc["DE3-BERT", "took on"].endswith("of 1 seeds")
    assert "**1.0: " in page.search_table(read["search"]).loc["DeeBERT"].iloc[0, -1]
    assert set(page.mean_curves(read["curves"], "movie", "flops")) == set(read["curves"].method)
    assert len(sentences.operating_points(read["points"])) == 3


def test_a_study_grows_task_by_task(study: SimpleNamespace, tmp_path: Path) -> None:
    timed = study.frames["times"].reindex(range(1)).assign(task="movie", method="PABEE", backbone=study.backbone)
    earlier = {**study.frames, "times": timed}
    others = {name: frame.assign(task="amazon") for name, frame in earlier.items()}
    larger = {name: frame.assign(backbone="larger") for name, frame in earlier.items()}
    for frames in (earlier, others, larger):
        tables.write(frames, tmp_path)
    changed = {name: frame.head(2) for name, frame in study.frames.items()}
    tables.write(changed, tmp_path)
    for name in page.COLUMNS:
        now, count = page.read_table(name, tmp_path), len(earlier[name])
        of_each = now.groupby(["task", "backbone"]).size().to_dict()
        # Clocks were not measured anew, so the old ones stay.
        assert of_each == {
            ("movie", study.backbone): 1 if name == "times" else min(2, count),
            ("amazon", study.backbone): count,
            ("movie", "larger"): count,
        }
        assert page.read_table(name, tmp_path, "larger").task.unique().tolist() == ["movie"]


def test_unknown_names_are_refused_in_a_sentence(study: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"unknown method of the study on movie 'pabbe' \(did you mean 'pabee'"):
        entries.train("smoke", setting_of(study, 0), "pabbe")
    with pytest.raises(InputError, match="nothing of the study has been run"):
        tables.tables("smoke", study.backbone, ["amazon"], [0])
    with pytest.raises(SystemExit, match="error: unknown task 'moive'"):
        main(["train", "smoke", "moive", study.backbone, "0", "pabee"])


def test_the_plan_counts_what_is_left(study: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = plan.plan("smoke", study.backbone, ["movie"], SEEDS)
    # All but DE3-BERT's second seed; each run once, though several lines of the scoreboard read it.
    assert ahead.runs - ahead.there == 1
    assert ahead.runs == len(study.frames["runs"]) + 1
    assert ahead.steps == {"movie": 2}  # 48 samples, one epoch
    monkeypatch.setattr(plan, "seconds_a_step", lambda setting: 3600.0)
    told = plan.announce("smoke", study.backbone, ["movie"], SEEDS)
    assert f"has {ahead.runs} runs; {ahead.there} of them are there. The others take 2 steps: at most about 2.0" in told
    done = plan.announce("smoke", study.backbone, ["movie"], SEEDS[:1])
    assert done.endswith("are there: only clocks and tables are left.")


def test_a_step_is_measured_on_the_setting_itself(study: SimpleNamespace) -> None:
    assert 0 < plan.seconds_a_step(setting_of(study, 0)) < 60


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
    assert counts["study_search"] == str(len(entries.method_names("movie", "minilm-l6")))


def test_make_study_refuses_an_unknown_task_before_anything_runs(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tasks=moive")
    assert plan.returncode != 0
    assert "unknown task 'moive'" in plan.stderr
    assert "Traceback" not in plan.stderr
