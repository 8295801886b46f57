"""`python -m eeutils try`: from a table to the numbers that decide, on a tiny encoder."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from eeutils import __main__ as command
from eeutils import deploy
from eeutils.deploy.weights import thresholds
from eeutils.errors import InputError
from eeutils.exiting.rules import divergence, entropy
from eeutils.exiting.tradeoff import at_threshold, threshold_for_speedup
from eeutils.study.entries import PABEE_ENTROPY
from eeutils.study.page import read_table, what_to_use
from eeutils.training.runs import Run
from eeutils.training.settings import Setting
from eeutils.trial import measured, report, session
from eeutils.trial.recommended import why
from tests.tiny import sentences


def tiny_setting_of(*given: Any, setting_of: Callable[..., Setting] = measured.setting_of) -> Setting:
    """The setting that a trial chooses, at the length and rate of a tiny encoder."""
    return replace(setting_of(*given), learning_rate=1e-3, max_length=40, epochs=3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 sentences that begin with their label, none twice."""
    texts, labels = sentences(600)
    unique = pd.DataFrame({"text": texts, "label": labels}).drop_duplicates("text")[:240]
    path = tmp_path_factory.mktemp("own") / "films.csv"
    unique.assign(label=unique.label.map({0: "poor", 1: "fine"})).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def tried(
    table: Path, encoder_folder: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, measured.Trial]:
    """A trial of that table, kept in a folder: the folder, what was printed, and the trial itself."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("tried")
    kept: list[measured.Trial] = []
    train = measured.train
    with patch.context() as context:
        context.setenv("EEUTILS_RUNS", str(folder / "runs"))
        context.setattr(measured, "setting_of", tiny_setting_of)
        # No time is measured here: a test cannot hold it to anything.
        context.setattr(measured, "TIMED", {1: 2, 32: 8})
        context.setattr(measured, "train", lambda *given: kept.append(train(*given)) or kept[-1])
        lines: list[str] = []
        context.setattr(sys.stdout, "write", lines.append)
        session.run(str(table), "quick", encoder_folder, 0, folder / "out")
    return folder / "out", "".join(lines), kept[0]


def test_scores_are_those_of_thresholds_from_dev_on_test(tried: tuple[Path, str, measured.Trial]) -> None:
    folder, _, trial = tried
    early, rule = trial.early, entropy()
    scores = pd.read_csv(folder / "scores.csv").set_index("asked")
    for asked in (1.5, 2.0, 3.0):
        threshold = threshold_for_speedup(early.dev, rule, asked)
        point = at_threshold(early.test, rule, early.metric, threshold)
        assert scores.score[asked] == pytest.approx(point["score"], abs=1e-5)
        assert scores.flops_speedup[asked] == pytest.approx(point["flops_speedup"], rel=1e-5)
        assert scores.kept[asked] == pytest.approx(point["score"] / scores.score[1.0], abs=1e-5)
        assert scores.kept_low[asked] <= scores.kept[asked] <= scores.kept_high[asked]
    plain = trial.plain.test
    assert scores.score[1.0] == pytest.approx(float((plain.predictions[-1] == plain.labels).float().mean()), abs=1e-5)
    clock = pd.read_csv(folder / "times.csv")
    assert clock.groupby("batch").asked.apply(list).to_dict() == {1: [1, 1.5, 2, 3], 32: [1, 1.5, 2, 3]}


def test_what_is_printed_says_what_was_decided_and_ends_in_a_line_that_runs(
    tried: tuple[Path, str, measured.Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed, _ = tried
    one = " ".join(printed.split())
    assert "60 rows were cut from train as test" in one
    assert "2 classes: 'fine', 'poor'" in one
    assert "saved per 1,000 texts, batch 32" in one
    assert "At 2x in FLOPs it keeps" in one
    line = re.search(r"from eeutils import deploy; .*", printed)[0]
    exec(line.replace("A text of yours.", "good film and plot"), {})
    assert capsys.readouterr().out.strip() == str(deploy.from_pretrained(folder / "model")(["good film and plot"]))


def test_a_kept_model_answers_as_the_trained_one_without_its_data(
    tried: tuple[Path, str, measured.Trial], table: Path
) -> None:
    folder, _, trial = tried
    texts = trial.task.test["text_a"]
    model = deploy.from_pretrained(folder / "model", speedup=2.0)
    threshold = threshold_for_speedup(trial.early.dev, entropy(), 2.0)
    expected = entropy().readiness(trial.early.test) >= threshold
    stages = model.runtime(texts).stages
    assert torch.equal(stages, torch.where(expected.any(dim=0), expected.float().argmax(dim=0), len(expected) - 1))
    names = ("fine", "poor")
    assert deploy.from_pretrained(folder / "model", speedup=1.0)(texts) == [
        names[number] for number in trial.early.test.predictions[-1].tolist()
    ]
    with pytest.raises(InputError, match=r"no threshold was chosen for 2.5x; choose one of: 1.5, 2, 3, 1"):
        deploy.from_pretrained(folder / "model", speedup=2.5)
    with pytest.raises(InputError, match="holds no saved model"):
        deploy.from_pretrained(table.parent)
    with pytest.raises(InputError, match="rule 'coin' cannot be named in a file"):
        deploy.save_pretrained(trial.early, folder / "coin", replace(entropy(), name="coin"))
    assert "films.csv" not in json.loads((folder / "model" / "model.json").read_text())["classes"]


def test_a_second_trial_trains_nothing(
    tried: tuple[Path, str, measured.Trial], table: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, trial = tried
    monkeypatch.setenv("EEUTILS_RUNS", str(folder.parent / "runs"))
    monkeypatch.setattr("eeutils.training.loop.fit", lambda *_, **__: pytest.fail("trained again"))
    again = measured.train(tiny_setting_of("quick", str(table), encoder_folder, 0))
    assert again.early.directory == trial.early.directory


def test_a_small_table_is_gone_over_more_often(table: Path, encoder_folder: str) -> None:
    # 132 training samples are 5 steps an epoch: 30 epochs are the most, short of the 188 steps of a larger table.
    assert measured.setting_of("quick", str(table), encoder_folder, 0).epochs == 30
    assert measured.setting_of("smoke", str(table), encoder_folder, 0).epochs == 1


def test_numbers_leave_where_they_move_no_more(
    tmp_path: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EEUTILS_RUNS", str(tmp_path / "runs"))
    texts, labels = sentences(90)
    table = pd.DataFrame({"text": texts, "score": [label + 0.25 for label in labels]}).drop_duplicates("text")
    table.to_json(tmp_path / "rated.jsonl", orient="records", lines=True)
    trial = measured.train(tiny_setting_of("smoke", str(tmp_path / "rated.jsonl"), encoder_folder, 0))
    assert trial.spec.metrics[0] == "pearson"
    assert thresholds(trial.early.dev, divergence())[2.0] == threshold_for_speedup(trial.early.dev, divergence(), 2.0)
    deploy.save_pretrained(trial.early, tmp_path / "model", divergence())
    assert all(
        isinstance(answer, float) for answer in deploy.from_pretrained(tmp_path / "model")(["good film", "bad plot"])
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.csv"], "error: there is no file or folder 'nowhere.csv'"),
        (["movie", "--profile", "quik"], "error: unknown profile 'quik' .did you mean 'quick'"),
        (["movie", "--backbone", "/no/such"], "error: cannot load backbone '/no/such'"),
    ],
)
def test_bad_input_ends_in_a_sentence(arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(SystemExit, match=sentence):
        command.main(["try", *arguments])


def test_the_recommended_method_is_not_told_apart_from_the_best_of_the_committed_tables() -> None:
    scores, costs = read_table("scores"), read_table("costs")
    ground = scores.backbone.iloc[0]
    use = what_to_use(scores[scores.backbone == ground], costs[costs.backbone == ground])
    assert PABEE_ENTROPY in use.loc["a class at 2x"].iloc[-1].split("; ")
    told = " ".join(why(regression=False))
    row = scores[(scores.method == PABEE_ENTROPY) & (scores.speedup == 2) & (scores.axis == "flops")].iloc[0]
    assert f"{row.kept:.1%} of the plain model's score" in told
    assert f"[{row.over_blind_low:+.3f}, {row.over_blind_high:+.3f}]" in told


def test_no_sentence_is_stronger_than_its_interval(tried: tuple[Path, str, measured.Trial]) -> None:
    _, _, trial = tried
    points = measured.table(trial)
    clock = pd.DataFrame(
        [{"batch": batch, "asked": asked, "ms": 1.0, "speedup": asked} for batch in (1, 32) for asked in points.asked]
    )
    gaps = {1.5: (0.02, 0.01, 0.03), 2.0: (0.02, -0.01, 0.05), 3.0: (-0.02, -0.03, -0.01)}
    for asked, gap in gaps.items():
        points.loc[points.asked == asked, ["over_blind", "over_blind_low", "over_blind_high"]] = gap
    points.loc[points.asked == 1, ["score_low"]] = trial.same_answer - 0.01
    told = report.judged(trial, points, clock)
    by_speedup = {asked: next(line for line in told if line.startswith(f"At {asked:g}x")) for asked in gaps}
    assert "that beats" in by_speedup[1.5]
    assert "not told apart" in by_speedup[2.0]
    assert "cut the model to fewer layers" in by_speedup[3.0]
    assert any("not shown to have learned" in line for line in told)
    assert np.isclose(trial.same_answer, 0.5, atol=0.1)
    assert isinstance(trial.early, Run)
    assert report.line_of_code(Path("m"), pairs=True).endswith('(["A first text."], ["A second text."]))')
