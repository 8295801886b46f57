"""What notebooks get from the package: checked parameters, sources, tables, figures with alternative texts."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt
from PIL import Image

from eeutils import notebook, plots, rules
from eeutils.errors import InputError
from eeutils.notebook import keep_curves, speedup_table
from eeutils.settings import Setting
from eeutils.tradeoff import score_at, sweep
from tests.helpers import accuracy, random_evidence

PARAMETERS = {"profile": "smoke", "task": "movie", "backbone": "minilm-l6", "seed": 3, "save_to": ""}

CURVE = pd.DataFrame(
    {
        "layer_speedup": [3.0, 1.5, 1.0],
        "flops_speedup": [2.9, 1.4, 0.99],
        "score": [0.7, 0.8, 0.85],
        "leave_1": [0.6, 0.2, 0.0],
        "leave_2": [0.4, 0.8, 1.0],
    }
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    displayed: list[object] = []
    for module in (notebook, plots):
        monkeypatch.setattr(module, "display", displayed.append)
    return displayed


def test_a_notebooks_globals_become_its_setting() -> None:
    namespace = {**PARAMETERS, "np": np, "Setting": Setting, "setting_of": notebook.setting_of, "_": 1}
    assert notebook.setting_of(namespace) == Setting.from_profile("smoke", "movie", "minilm-l6", 3)


def test_a_misspelt_parameter_stops_the_notebook_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"unknown notebook parameter 'sede' \(did you mean 'seed'\?\).*backbone"):
        notebook.setting_of({**PARAMETERS, "sede": 1})


@pytest.mark.parametrize(("name", "value"), [("profile", "fast"), ("task", "movies"), ("seed", -1)])
def test_an_unknown_value_stops_the_notebook(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        notebook.setting_of(PARAMETERS | {name: value})


def test_a_notebook_for_classes_refuses_a_regression() -> None:
    with pytest.raises(InputError, match=r"movie-valence.*is a regression; choose one of: movie, amazon"):
        notebook.needs_classes(Setting(task="movie-valence"))
    notebook.needs_classes(Setting(task="movie"))


def test_the_source_that_is_shown_is_the_one_that_runs(shown: list[object]) -> None:
    notebook.show_source(notebook.keep_table)
    (markdown,) = shown
    assert markdown.data.startswith("```python\ndef keep_table(")
    assert "to_csv" in markdown.data


def test_a_table_is_kept_only_where_the_reader_asked_for_it(tmp_path: Path) -> None:
    notebook.keep_table(CURVE, "", "curve")
    assert list(tmp_path.iterdir()) == []
    notebook.keep_table(CURVE, tmp_path, "curve")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results" / "curve.csv"), CURVE)


def test_a_figure_is_shown_with_its_alternative_text_and_kept(shown: list[object], tmp_path: Path) -> None:
    plots.show(plots.tradeoff({"rule": CURVE}, metric="accuracy"), "what it shows", tmp_path, "curve")
    (image,) = shown
    data, metadata = image._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "what it shows"
    assert Image.open(io.BytesIO((tmp_path / "figures" / "curve.png").read_bytes())).width > 400
    assert plt.get_fignums() == []  # closed: a notebook with many figures must not keep them all
    assert data


def test_a_trade_off_names_every_curve_and_says_which_speed_up_it_draws() -> None:
    oracle = pd.DataFrame({"layer_speedup": [2.0], "flops_speedup": [1.9], "score": [0.9]})
    figure = plots.tradeoff({"a": CURVE, "b": CURVE}, metric="f1", fixed={"b": CURVE}, separate=CURVE, oracle=oracle)
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:2] == ["a", "b"]
    assert len(names) == 5
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer speed-up", "f1")
    by_flops = plots.tradeoff({"a": CURVE}, metric="f1", speedup="flops").axes[0]
    assert by_flops.get_xlabel() == "FLOPs speed-up"
    assert set(CURVE.flops_speedup) <= set(by_flops.lines[0].get_xdata())
    plt.close("all")


def test_a_trade_off_is_straight_over_cost_and_leaves_single_points_apart() -> None:
    ends = pd.DataFrame({"layer_speedup": [1.0, 4.0], "flops_speedup": [1.0, 4.0], "score": [0.9, 0.6]})
    axes = plots.tradeoff({"a": CURVE}, metric="f1", fixed={"b": ends}, points={"one model each": ends}).axes[0]
    coins = [line for line in axes.lines if len(line.get_xdata()) > 100 and line.get_linestyle() == "--"]
    [coin] = coins
    # Half of the samples through each end: a cost of 5/8, which is a speed-up of 1.6, and the mean of both scores.
    assert np.interp(1.6, coin.get_xdata()[::-1], coin.get_ydata()[::-1]) == pytest.approx(0.75, abs=1e-3)
    [apart] = [points for points in axes.collections if points.get_label() == "one model each"]
    assert apart.get_offsets().tolist() == [[1.0, 0.9], [4.0, 0.6]]
    plt.close("all")


def test_journeys_frame_the_layer_at_which_a_sentence_leaves() -> None:
    probabilities = np.array([[0.9, 0.95, 0.99], [0.4, 0.6, 0.8]])
    figure = plots.journeys(
        ["short", "long " * 40], probabilities, [0, 2], ["good", "bad"], layers=[1, 2, 3], positive="good"
    )
    frames = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    assert [(frame.get_x(), frame.get_y()) for frame in frames] == [(0, 0), (2, 1)]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "short  (good)"
    assert labels[1].endswith("...  (bad)")
    plt.close("all")


def test_curves_are_shown_at_speedups_and_kept_in_one_table(tmp_path: Path) -> None:
    evidence = random_evidence(0, 4, 30, 2)
    curves = {rule.name: sweep(evidence, rule, accuracy) for rule in (rules.entropy(), rules.patience())}
    shown = speedup_table(curves, [1.0, 2.0, 3.9], axis="flops")
    assert shown.columns.tolist() == ["1x", "2x", "3.9x"]
    assert shown.loc["entropy", "2x"] == score_at(curves["entropy"], 2.0, "flops")
    assert np.isnan(shown.loc["patience", "3.9x"]), "patience cannot leave at the first of four exits"
    keep_curves(curves, tmp_path, "both")
    kept = pd.read_csv(tmp_path / "results" / "both.csv")
    assert kept.rule.tolist() == ["entropy"] * len(curves["entropy"]) + ["patience"] * len(curves["patience"])
    assert kept.score.tolist() == pytest.approx(pd.concat(curves.values()).score.tolist(), abs=1e-6)


def test_a_point_of_its_own_is_seen_where_lines_pass_over_it() -> None:
    rows = [("alone", 3, 0.7), *((name, layer, 0.7) for name in ("line", "other line") for layer in range(1, 7))]
    figure = plots.lines(pd.DataFrame(rows, columns=["model", "layer", "score"]), "layer", "score", hue="model")
    figure.canvas.draw()
    [axes] = figure.axes
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    colour = axes.get_legend().legend_handles[0].get_color()
    left, top, right, bottom = (int(end) for end in (*axes.bbox.min, *axes.bbox.max))
    inside = shown[len(shown) - bottom : len(shown) - top, left:right]
    assert (np.abs(inside - colors.to_rgb(colour)).max(axis=-1) < 0.02).sum() > 20
    plt.close(figure)
