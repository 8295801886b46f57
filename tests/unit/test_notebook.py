"""What notebooks get from the package: checked parameters, sources, and tables and figures that are shown and kept."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score
from transformers import BertConfig

from eeutils.data.specs import TASKS
from eeutils.errors import InputError
from eeutils.exiting import claims, rules
from eeutils.exiting.intervals import Interval
from eeutils.exiting.tradeoff import score_at, sweep
from eeutils.papers import pabee
from eeutils.papers.budgets import budget_of
from eeutils.reporting import notebook, plots
from eeutils.reporting.notebook import Notebook, open_notebook, show_source, speedup_table
from eeutils.reporting.plots import theme
from eeutils.training.runs import Run
from eeutils.training.settings import Setting
from tests.helpers import accuracy, random_evidence

CURVE = pd.DataFrame(
    {
        "threshold": [0.5, 0.9, np.inf],
        "score": [0.7, 0.8, 0.85],
        "layers": [2.1, 4.0, 6.0],
        "layer_speedup": [3.0, 1.5, 1.0],
        "flops": [20.5, 41.0, 62.0],
        "flops_speedup": [2.9, 1.4, 0.99],
    }
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that says what an encoder of three layers is; nobody needs its weights here."""
    folder = tmp_path_factory.mktemp("encoder")
    BertConfig(num_hidden_layers=3).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def parameters(encoder: str) -> dict[str, Any]:
    """The globals of a notebook after its parameters cell."""
    return {"profile": "smoke", "task": "movie", "backbone": encoder, "seed": 3, "save_to": ""}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    displayed: list[Any] = []
    for module in (notebook, theme):
        monkeypatch.setattr(module, "display", lambda shown, **options: displayed.append(shown))
    return displayed


def test_a_notebooks_globals_become_its_setting(parameters: dict[str, Any], shown: list[Any]) -> None:
    here = open_notebook({**parameters, "np": np, "Setting": Setting, "open_notebook": open_notebook, "_": 1})
    assert here.setting == Setting.from_profile("smoke", "movie", parameters["backbone"], 3)
    assert (here.profile, here.depth, here.folder) == ("smoke", 3, None)
    assert here.budget == budget_of("smoke", 3)
    assert here.spec == TASKS["movie"]
    assert here.name == "accuracy"
    predictions, labels = np.array([0, 1, 1]), np.array([0, 1, 0])
    assert here.metric(predictions, labels) == accuracy_score(labels, predictions)
    said, findings = shown
    assert findings.data == "*What came out stands here once the notebook has run.*"
    assert said.data == f"{TASKS['movie'].title}, {parameters['backbone']} (3 layers), profile smoke, seed 3"


def test_a_notebook_may_fix_what_its_profile_decides(parameters: dict[str, Any], shown: list[Any]) -> None:
    assert open_notebook(parameters, epochs=7).setting.epochs == 7
    with pytest.raises(InputError, match=r"unknown setting 'epoch' \(did you mean 'epochs'\?\)"):
        open_notebook(parameters, epoch=7)


def test_a_misspelt_parameter_stops_the_notebook_with_the_valid_ones(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"unknown notebook parameter 'sede' \(did you mean 'seed'\?\).*backbone"):
        open_notebook({**parameters, "sede": 1})


@pytest.mark.parametrize(
    ("name", "value"), [("profile", "fast"), ("task", "movies"), ("backbone", "no such folder"), ("seed", -1)]
)
def test_an_unknown_value_stops_the_notebook(parameters: dict[str, Any], name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}.*{value}"):
        open_notebook(parameters | {name: value})


def test_a_notebook_for_classes_refuses_a_regression(parameters: dict[str, Any], shown: list[Any]) -> None:
    regression = parameters | {"task": "movie-valence"}
    with pytest.raises(InputError, match=r"movie-valence.*is a regression; choose one of: movie, movie-3, amazon"):
        open_notebook(regression)
    here = open_notebook(regression, needs_classes=False)
    assert here.name in ("pearson", "spearman")


def test_a_notebook_that_only_reads_tables_needs_no_encoder(
    parameters: dict[str, Any], shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(name: str) -> None:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr(notebook, "config_of", fetched)
    here = open_notebook(parameters | {"backbone": "minilm-l6"}, needs_encoder=False)
    assert here.setting.backbone == "minilm-l6"
    assert len(shown) == 1, "it does not say what it runs, for it runs nothing; only where the findings will stand"


def test_the_cell_that_opens_a_notebook_may_be_run_again(parameters: dict[str, Any], shown: list[Any]) -> None:
    first = open_notebook(parameters)
    parameters |= {"curves": {}, "seed": 4}  # by then the notebook's own variables are there, too
    again = open_notebook(parameters)
    assert (first.setting.seed, again.setting.seed) == (3, 4)


def test_a_wrong_parameter_stops_the_notebook_until_it_is_mended(parameters: dict[str, Any], shown: list[Any]) -> None:
    for _ in range(2):
        parameters["sede"] = 1
        with pytest.raises(InputError, match="sede"):
            open_notebook(parameters)
    del parameters["sede"]
    assert open_notebook(parameters).setting.seed == 3


def kept_by(here: Notebook) -> dict[str, Path]:
    """Keep one of each; by name the files that are there afterwards."""
    here.show(plots.tradeoff({"rule": CURVE}, metric="accuracy"), "a curve that falls", "00-curve")
    here.keep(CURVE, "00-table")
    here.keep_curves({"entropy": CURVE, "patience": CURVE.iloc[:1]}, "00-curves")
    here.judge([claims.judge("D1", Interval(0.02, 0.01, 0.03), "a note"), claims.not_testable("D5", "no RoBERTa")], "c")
    return {path.name: path for path in here.folder.rglob("*") if path.is_file()} if here.folder else {}


def test_what_a_notebook_shows_is_kept_where_the_reader_asked_for_it(
    parameters: dict[str, Any], shown: list[Any], tmp_path: Path
) -> None:
    kept = kept_by(open_notebook(parameters | {"save_to": str(tmp_path / "mine")}))
    assert {str(path.relative_to(tmp_path)) for path in kept.values()} == {
        "mine/figures/00-curve.png",
        "mine/results/00-table.csv",
        "mine/results/00-curves.csv",
        "mine/results/c.csv",
    }
    assert Image.open(io.BytesIO(kept["00-curve.png"].read_bytes())).width > 400
    pd.testing.assert_frame_equal(pd.read_csv(kept["00-table.csv"]), CURVE)
    curves = pd.read_csv(kept["00-curves.csv"])
    assert curves.columns.tolist() == ["rule", "threshold", "score", "layers", "layer_speedup", "flops_speedup"]
    assert curves.rule.tolist() == ["entropy"] * 3 + ["patience"]
    assert curves.score.tolist() == [0.7, 0.8, 0.85, 0.7]
    ledger = pd.read_csv(kept["c.csv"], keep_default_na=False)
    assert ledger.claim.tolist() == ["D1", "D5"]
    assert ledger.verdict.tolist()[1] == claims.NOT_TESTABLE
    assert ledger.note.tolist() == ["a note", "no RoBERTa"]


def test_nothing_is_kept_where_nobody_asked_for_it(
    parameters: dict[str, Any], shown: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept_by(open_notebook(parameters))
    assert list(tmp_path.iterdir()) == []
    assert len(shown) == 3, "what it is run with, the findings' place, and the figure: shown all the same"


def test_what_was_found_is_shown_where_it_is_computed_and_at_the_top(
    parameters: dict[str, Any], shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: dict[str, str] = {}

    def display(thing: Any, display_id: str | None = None) -> None:
        shown.append(thing)
        if display_id is not None:
            placed[display_id] = thing.data

    def update(thing: Any, *, display_id: str) -> None:
        assert display_id in placed, "only what stands there can be replaced"
        placed[display_id] = thing.data

    monkeypatch.setattr(notebook, "display", display)
    monkeypatch.setattr(notebook, "update_display", update)
    here = open_notebook(parameters)
    [before] = placed.values()
    assert before == "*What came out stands here once the notebook has run.*"
    here.found("DeeBERT wins by 0.010.", "A coin does not.")
    [at_the_top] = placed.values()
    assert at_the_top == shown[-1].data == "**What came out**\n\n- DeeBERT wins by 0.010.\n- A coin does not."


def trained_run(folder: Path, gate: list[tuple[int, float, float, bool]] | None) -> Run:
    """A run of two phases with a gate of (layer, exit, probe, learned), or without probes."""
    folder.mkdir()
    run = Run(folder, pabee.METHOD, Setting(), pabee.METHOD.options)
    history = {"steps": [10, 10, 5], "seconds": [1.2, 1.2, 0.3], "loss": [0.9, 0.5, 0.25]}
    run.__dict__["history"] = pd.DataFrame(history)
    if gate is not None:
        (folder / "evidence-probe-dev.safetensors").touch()
        run.__dict__["learned"] = pd.DataFrame(gate, columns=["layer", "exit", "probe", "learned"])
    return run


def test_the_gate_is_shown_for_every_checkpoint_and_names_who_has_not_learned(
    parameters: dict[str, Any], shown: list[Any], tmp_path: Path
) -> None:
    good = trained_run(tmp_path / "good", [(1, 0.7, 0.705, True), (2, 0.8, 0.7, True)])
    bad = trained_run(tmp_path / "bad", [(1, 0.6, 0.7, False), (2, 0.8, 0.81, True), (4, 0.5, 0.9, False)])
    here = open_notebook(parameters)
    unfit = here.trained({"PABEE": good, "BADGE": bad, "one exit": trained_run(tmp_path / "single", None)})
    assert unfit == {"BADGE": "BADGE has not learned what its vectors can tell at layer 1, 4"}
    table, said = shown[-2:]
    assert table.index.tolist() == ["PABEE", "BADGE", "one exit"]
    assert table.loc["PABEE"].tolist() == [25, 3, "0.250", "0.700", "0.800", ""]
    assert table.loc["BADGE"].tolist() == [25, 3, "0.250", "0.600 ✗ (0.700)", "0.800", "0.500 ✗ (0.900)"]
    assert table.loc["one exit"].tolist() == [25, 3, "0.250", "", "", ""]
    assert table.columns.tolist() == ["steps", "seconds", "last loss", "exit 1", "exit 2", "exit 4"]
    assert said.data.endswith(f": {unfit['BADGE']}.")
    assert here.trained({"PABEE": good}) == {}
    assert shown[-1].data.endswith(": every exit has learned what a linear probe finds in its own vector.")


def test_a_figure_without_a_name_is_shown_and_not_kept(
    parameters: dict[str, Any], shown: list[Any], tmp_path: Path
) -> None:
    here = open_notebook(parameters | {"save_to": str(tmp_path)})
    here.show(plots.tradeoff({"rule": CURVE}, metric="accuracy"), "a curve that falls")
    assert list(tmp_path.iterdir()) == []
    assert shown[-1]._repr_mimebundle_()[1]["image/png"]["alt"] == "a curve that falls"


def test_the_claims_table_shows_each_claim_with_its_test_and_what_came_out(
    parameters: dict[str, Any], shown: list[Any]
) -> None:
    verdict = claims.judge("D1", Interval(0.02, 0.01, 0.03), "a note")
    ledger = open_notebook(parameters).judge([verdict], "00-claims")
    assert ledger.columns.tolist() == ["claim", "source", "paper", "our test", "bar", "ours", "verdict", "note"]
    [row] = ledger.to_dict("records")
    assert (row["claim"], row["our test"]) == ("D1", verdict.claim.test)
    assert (row["ours"], row["verdict"], row["note"]) == ("0.020 [0.010, 0.030]", verdict.outcome, "a note")
    assert "..." not in ledger.to_html(), "long cells are shown whole"


def test_the_source_that_is_shown_is_the_one_that_runs(shown: list[Any]) -> None:
    show_source(notebook.speedup_table)
    (markdown,) = shown
    assert markdown.data.startswith("```python\ndef speedup_table(")
    assert "score_at(" in markdown.data


def test_curves_are_shown_at_speedups() -> None:
    evidence = random_evidence(0, 4, 30, 2)
    curves = {rule.name: sweep(evidence, rule, accuracy) for rule in (rules.entropy(), rules.patience())}
    for axis, name in (("flops", "FLOPs speed-up"), ("layers", "layer speed-up")):
        table = speedup_table(curves, [1.0, 2.0, 3.9], axis=axis)
        assert table.columns.tolist() == ["1x", "2x", "3.9x"]
        assert table.index.name == name
        assert table.loc["entropy", "2x"] == score_at(curves["entropy"], 2.0, axis)
        assert np.isnan(table.loc["patience", "3.9x"]), "patience cannot leave at the first of four exits"
    by_default = speedup_table(curves, [1.0])
    assert by_default.index.name == "FLOPs speed-up"
