"""What figures show: every number of the frames at its place, under its name, and what only compares in grey."""

import errno
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from eeutils.errors import InputError
from eeutils.reporting import plots
from eeutils.reporting.plots import theme

CURVE = pd.DataFrame(
    {
        "layer_speedup": [3.0, 1.5, 1.0],
        "flops_speedup": [2.9, 1.4, 0.99],
        "score": [0.7, 0.8, 0.85],
        "leave_1": [0.6, 0.2, 0.0],
        "leave_2": [0.4, 0.8, 1.0],
    }
)
AXES = [("flops", "flops_speedup", "FLOPs speed-up"), ("layers", "layer_speedup", "layer speed-up")]


@pytest.fixture(autouse=True)
def themed() -> Iterator[None]:
    plots.use_theme()
    yield
    plt.close("all")


def legend_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def named(axes: Axes) -> dict[str, Line2D]:
    """Lines by their name in the legend."""
    return {line.get_label(): line for line in axes.lines if len(line.get_xdata()) and line.get_label()[0] != "_"}


def ends_of(axes: Axes) -> list[list[tuple[float, float]]]:
    """Of each whisker on the axes, its two ends."""
    return [[tuple(end) for end in path] for bars in axes.collections for path in bars.get_segments()]


def ticks(labels: list) -> list[str]:
    return [label.get_text() for label in labels]


def is_grey(colour: object) -> bool:
    red, green, blue = colors.to_rgb(colour)
    return red == green == blue


def pixels(figure: Figure, axes: Axes, colour: object) -> int:
    """How many pixels inside the axes have a colour."""
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    left, bottom, right, top = (int(end) for end in axes.bbox.extents)
    inside = drawn[len(drawn) - top : len(drawn) - bottom, left:right]
    return int((np.abs(inside - colors.to_rgb(colour)).max(axis=-1) < 0.02).sum())


# What all figures have in common.


def test_figures_need_no_encoder_and_no_data_set() -> None:
    code = "import sys, eeutils.reporting.plots; print({'transformers', 'datasets', 'accelerate'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_figure_is_shown_with_its_alternative_text_and_kept_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(theme, "display", shown.append)
    plots.show(plots.tradeoff({"rule": CURVE}, metric="accuracy"), "what it shows", tmp_path / "figures" / "curve.png")
    plots.show(plots.tradeoff({"rule": CURVE}, metric="accuracy"), "only shown")
    assert [image._repr_mimebundle_()[1]["image/png"]["alt"] for image in shown] == ["what it shows", "only shown"]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curve.png"]
    kept = (tmp_path / "figures" / "curve.png").read_bytes()
    assert kept == shown[0].data == shown[1].data
    image = Image.open(io.BytesIO(kept))
    image.load()
    assert image.width > 400
    assert plt.get_fignums() == []  # closed: a notebook with many figures must not keep them all


def test_what_cannot_be_kept_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"the disk is full: .*curve\.png was not written"):
        plots.show(plots.tradeoff({"rule": CURVE}, metric="accuracy"), "what it shows", tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []


def test_few_colours_keep_that_of_a_line_which_only_the_legend_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(theme, "display", lambda image: None)
    figure, axes = plt.subplots()
    axes.imshow(np.random.default_rng(0).random((60, 80, 3)))  # more colours than a small file has
    axes.plot([], [], color="red", label="behind another line")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    plots.show(figure, "noise, and a line in the legend", tmp_path / "rare.png")
    image = Image.open(tmp_path / "rare.png")
    assert image.mode == "P", "few colours, a small file"
    distance = np.abs(np.asarray(image.convert("RGB")) / 255 - colors.to_rgb("red")).max(axis=-1)
    assert (distance < 0.02).sum() > 10


# Exits and rules.


@pytest.mark.parametrize(("axis", "column", "label"), AXES)
def test_a_trade_off_marks_the_points_of_each_curve_at_their_speed_up(axis: str, column: str, label: str) -> None:
    long = pd.DataFrame({column: np.linspace(1, 3, 40), "score": np.linspace(0.9, 0.6, 40)})
    shuffled = CURVE.iloc[[1, 0, 2]]
    figure = plots.tradeoff({"few": shuffled, "many": long}, metric="f1", axis=axis, dashed=["many"], title="Two rules")
    [axes] = figure.axes
    lines = named(axes)
    assert list(lines) == legend_of(axes) == ["few", "many"]
    for name, curve in (("few", CURVE), ("many", long)):
        points = lines[name].get_xydata()[:: lines[name].get_markevery()]
        assert points == pytest.approx(curve.sort_values(column)[[column, "score"]].to_numpy())
    assert (lines["few"].get_marker(), lines["many"].get_marker()) == ("o", "None"), "forty markers would be a band"
    assert (lines["few"].get_linestyle(), lines["many"].get_linestyle()) == ("-", "--")
    assert lines["few"].get_color() != lines["many"].get_color()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == (label, "f1", "Two rules")
    assert axes.xaxis.get_major_formatter()(1.5) == "1.5x"


def test_a_trade_off_counts_flops_unless_asked_for_layers() -> None:
    assert plots.tradeoff({"a": CURVE}, metric="f1").axes[0].get_xlabel() == "FLOPs speed-up"
    assert plots.leaving(CURVE, [1, 2]).axes[0].get_xlabel() == "FLOPs speed-up"


def test_an_unknown_axis_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"unknown axis 'layer' \(did you mean 'layers'\?\); .*flops, layers"):
        plots.tradeoff({"a": CURVE}, metric="f1", axis="layer")
    with pytest.raises(InputError, match="flops, layers"):
        plots.leaving(CURVE, [1, 2], axis="seconds")


def test_a_trade_off_is_straight_over_cost_and_leaves_single_points_apart() -> None:
    ends = pd.DataFrame({"layer_speedup": [1.0, 4.0], "flops_speedup": [1.0, 4.0], "score": [0.9, 0.6]})
    axes = plots.tradeoff({"a": CURVE}, metric="f1", fixed={"b": ends}, points={"one model each": ends}).axes[0]
    coin = named(axes)["fixed exits, b"]
    # Half of the samples through each end: a cost of 5/8, which is a speed-up of 1.6, and the mean of both scores.
    x, y = coin.get_xydata()[coin.get_xdata().argsort()].T
    assert np.interp(1.6, x, y) == pytest.approx(0.75, abs=1e-3)
    [apart] = [points for points in axes.collections if points.get_label() == "one model each"]
    assert apart.get_offsets().tolist() == [[1.0, 0.9], [4.0, 0.6]]
    assert colors.same_color(apart.get_facecolor()[0], "#0173b2"), "points have the first colour, curves the next ones"
    assert not colors.same_color(named(axes)["a"].get_color(), "#0173b2")


def test_a_trade_off_draws_the_baselines_in_grey() -> None:
    oracle = pd.DataFrame({"layer_speedup": [2.0], "flops_speedup": [1.9], "score": [0.9]})
    separate = pd.DataFrame({"layer_speedup": [3.0, 1.5], "flops_speedup": [2.8, 1.45], "score": [0.75, 0.83]})
    fixed = {"one": CURVE, "other": CURVE}
    axes = plots.tradeoff({"a": CURVE, "b": CURVE}, metric="f1", fixed=fixed, separate=separate, oracle=oracle).axes[0]
    baselines = ["fixed exits, one", "fixed exits, other", "k-layer model, fine-tuned separately"]
    # Matplotlib lists lines before points.
    # The oracle is above all curves: it stands at the edge, and does not squeeze them.
    assert legend_of(axes) == ["a", "b", *baselines, "oracle (needs the labels), 0.900 at 1.9x"]
    assert axes.get_ylim()[1] < 0.9
    lines = named(axes)
    assert [name for name, line in lines.items() if is_grey(line.get_color())] == baselines
    assert [lines[name].get_linestyle() for name in baselines] == ["--", "--", ":"]
    one, other, k_layers = (lines[name] for name in baselines)
    assert one.get_color() != other.get_color()
    assert one.get_marker() != other.get_marker()
    assert k_layers.get_xydata()[:: k_layers.get_markevery()] == pytest.approx(np.array([[1.45, 0.83], [2.8, 0.75]]))
    [star] = axes.collections
    assert star.get_offsets().tolist() == [[1.9, axes.get_ylim()[1]]]
    assert is_grey(star.get_facecolor()[0][:3])


@pytest.mark.parametrize(("axis", "column", "label"), AXES)
def test_a_curve_with_a_band_is_drawn_in_it(axis: str, column: str, label: str) -> None:
    banded = CURVE.assign(low=CURVE.score - 0.02, high=CURVE.score + 0.03)
    curves = {"plain": CURVE, "banded": banded.iloc[[1, 0, 2]], "aside": banded, "broken": banded}
    # Many bands are none: what steps back and what is dashed has none.
    axes = plots.tradeoff(curves, metric="f1", axis=axis, grey=["aside"], dashed=["broken"]).axes[0]
    [band] = axes.collections
    edges = {tuple(point) for path in band.get_paths() for point in path.vertices.round(9).tolist()}
    wanted = banded.melt(column, ["low", "high"])[[column, "value"]].round(9)
    assert set(map(tuple, wanted.to_numpy().tolist())) <= edges
    assert colors.same_color(band.get_facecolor()[0][:3], named(axes)["banded"].get_color())
    assert band.get_alpha() < 0.3, "the curve is seen through it"


def test_curves_that_step_back_are_grey_and_take_no_colour_from_the_others() -> None:
    curves = dict.fromkeys(("first", "aside", "second", "away"), CURVE)
    alone = named(plots.tradeoff({"first": CURVE, "second": CURVE}, metric="f1").axes[0])
    lines = named(plots.tradeoff(curves, metric="f1", grey=["aside", "away"]).axes[0])
    assert list(lines) == list(curves)
    assert [name for name, line in lines.items() if is_grey(line.get_color())] == ["aside", "away"]
    for name in ("first", "second"):
        assert lines[name].get_color() == alone[name].get_color()
        assert lines[name].get_linewidth() > lines["aside"].get_linewidth()


@pytest.mark.parametrize(("axis", "column", "label"), AXES)
def test_the_best_blind_policy_is_a_grey_dashed_line_through_its_points(axis: str, column: str, label: str) -> None:
    blind = pd.DataFrame({column: [3.0, 2.0, 1.0], "score": [0.6, 0.75, 0.8]})
    lines = named(plots.tradeoff({"a": CURVE}, metric="f1", axis=axis, blind=blind).axes[0])
    line = lines["best blind policy"]
    assert line.get_xydata().tolist() == blind[[column, "score"]].to_numpy().tolist()
    assert is_grey(line.get_color())
    assert line.get_linestyle() == "--"


@pytest.mark.parametrize(
    ("score", "speedup", "place"),
    [
        (0.80, 2.0, "where it is"),
        (0.99, 2.0, "above"),
        (0.80, 9.0, "beyond"),
        (0.99, 9.0, "above and beyond"),
    ],
)
def test_an_oracle_far_from_the_curves_stands_at_the_edge_with_its_score(
    score: float, speedup: float, place: str
) -> None:
    without = plots.tradeoff({"a": CURVE}, metric="f1").axes[0]
    oracle = pd.DataFrame({"layer_speedup": [1.0], "flops_speedup": [speedup], "score": [score]})
    axes = plots.tradeoff({"a": CURVE}, metric="f1", oracle=oracle).axes[0]
    assert axes.get_xlim() == pytest.approx(without.get_xlim(), abs=0.01)
    assert axes.get_ylim() == pytest.approx(without.get_ylim())
    [[x, y]] = axes.collections[0].get_offsets().tolist()
    assert x == pytest.approx(axes.get_xlim()[1] if "beyond" in place else speedup)
    assert y == pytest.approx(axes.get_ylim()[1] if "above" in place else score)
    [told] = [name for name in legend_of(axes) if name.startswith("oracle")]
    far = "" if place == "where it is" else f", {score:.3f} at {speedup:.1f}x"
    assert told == f"oracle (needs the labels){far}"


def test_a_legend_of_many_names_hides_no_curve() -> None:
    def covered(curves: int) -> bool:
        figure = plots.tradeoff({str(number): CURVE for number in range(curves)}, metric="f1")
        figure.canvas.draw()
        [axes] = figure.axes
        return axes.get_legend().get_window_extent().overlaps(axes.bbox)

    assert covered(6)
    assert not covered(7)


@pytest.mark.parametrize(("axis", "column", "label"), AXES)
def test_where_samples_leave_is_stacked_over_the_speed_up(axis: str, column: str, label: str) -> None:
    [axes] = plots.leaving(CURVE, [3, 6], axis=axis, title="Leaving").axes
    first, second = (set(map(tuple, area.get_paths()[0].vertices)) for area in axes.collections)
    assert {(speedup, share) for speedup, share in zip(CURVE[column], CURVE.leave_1, strict=True)} <= first
    assert {(speedup, 0.0) for speedup in CURVE[column]} <= first
    assert {(speedup, 1.0) for speedup in CURVE[column]} <= second
    assert (axes.get_xlabel(), axes.get_ylabel()) == (label, "share of samples")
    assert legend_of(axes) == ["layer 3", "layer 6"]
    assert axes.get_ylim() == (0, 1)
    assert axes.yaxis.get_major_formatter()(0.25) == "25%"


def curves_of_tasks() -> pd.DataFrame:
    """Curves of three methods on two tasks, of which one lacks one."""
    ours = pd.DataFrame({"speed-up": [3.0, 1.0, 2.0], "score": [0.6, 0.9, 0.8]})
    fixed = pd.DataFrame({"speed-up": [1.0, 3.0], "score": [0.9, 0.4]})
    one = pd.DataFrame({"speed-up": [2.0], "score": [0.85]})
    parts = [("first", "fixed", fixed), ("first", "ours", ours), ("second", "fixed", fixed + 1)]
    parts += [("second", "ours", ours + 1), ("second", "one model", one)]
    return pd.concat([curve.assign(task=task, method=method) for task, method, curve in parts])


def test_panels_draw_each_task_on_its_own_and_each_method_alike() -> None:
    frame = curves_of_tasks()
    figure = plots.panels(frame, "speed-up", "score", hue="method", panel="task", grey=["fixed"], dashed=["ours"])
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["first", "second"]
    assert [len(axes.lines) for axes in (first, second)] == [2, 3]
    for axes in (first, second):
        rows = frame[frame.task == axes.get_title(loc="left")].sort_values("speed-up")
        for line, (_, points) in zip(axes.lines, rows.groupby("method", sort=False), strict=True):
            assert line.get_xydata() == pytest.approx(points[["speed-up", "score"]].to_numpy())
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("speed-up", "score")
    [legend] = figure.legends
    assert ticks(legend.get_texts()) == ["fixed", "ours", "one model"]
    for fixed, ours in ((axes.lines[0], axes.lines[1]) for axes in (first, second)):
        assert is_grey(fixed.get_color())
        assert fixed.get_marker() == "None", "it steps back"
        assert not is_grey(ours.get_color())
        assert (ours.get_linestyle(), ours.get_marker()) == ("--", "o")
    assert first.lines[1].get_color() == second.lines[1].get_color()


def test_a_line_of_one_point_is_a_star_that_is_seen() -> None:
    figure = plots.panels(curves_of_tasks(), "speed-up", "score", hue="method", panel="task", grey=["fixed"])
    second = figure.axes[1]
    assert second.lines[2].get_marker() == "*"
    assert pixels(figure, second, second.lines[2].get_color()) > 20


def test_panels_that_are_left_over_stay_empty() -> None:
    frame = pd.concat([curves_of_tasks().assign(task=str(number)) for number in range(3)])
    figure = plots.panels(frame, "speed-up", "score", hue="method", panel="task")
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]
    assert len(figure.legends[0].get_texts()) == 3


def test_the_scores_of_exits_stand_over_their_layers() -> None:
    scores = pd.DataFrame({"ours": [0.5, 0.6, 0.7], "theirs": [0.4, np.nan, 0.8]}, index=[2, 4, 6])
    [axes] = plots.stage_scores(scores, metric="accuracy", layers=[2, 4, 6], title="Exits").axes
    lines = named(axes)
    assert list(lines) == legend_of(axes) == ["ours", "theirs"]
    assert lines["ours"].get_xydata().tolist() == [[2, 0.5], [4, 0.6], [6, 0.7]]
    assert np.isnan(lines["theirs"].get_ydata()).tolist() == [False, True, False]
    assert len({line.get_marker() for line in lines.values()}) == 2
    assert axes.get_xticks().tolist() == [2, 4, 6]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("exit after layer", "accuracy")
    assert axes.get_title(loc="left") == "Exits"
    [same] = plots.stage_scores(scores.to_dict("list"), metric="accuracy", layers=[2, 4, 6]).axes
    np.testing.assert_array_equal(named(same)["theirs"].get_xydata(), lines["theirs"].get_xydata())


def test_reliability_is_accuracy_over_confidence_with_larger_points_for_more_samples() -> None:
    tables = {
        "surer": pd.DataFrame({"confidence": [0.6, 0.9], "accuracy": [0.5, 0.7], "samples": [10, 90]}),
        "shy": pd.DataFrame({"confidence": [0.55, 0.7], "accuracy": [0.8, 0.9], "samples": [50, 50]}),
    }
    [axes] = plots.reliability(tables).axes
    lines = named(axes)
    assert list(lines) == legend_of(axes) == ["surer", "shy", "as sure as it is right"]
    for points, (name, table) in zip(axes.collections, tables.items(), strict=True):
        assert points.get_offsets().tolist() == table[["confidence", "accuracy"]].to_numpy().tolist()
        assert lines[name].get_xydata().tolist() == points.get_offsets().tolist()
        assert colors.same_color(points.get_facecolor()[0], lines[name].get_color())
    few, many = axes.collections[0].get_sizes()
    assert few < many
    assert np.ptp(axes.collections[1].get_sizes()) == 0
    assert lines["as sure as it is right"].get_xydata().tolist() == [[0.55, 0.55], [1, 1]]
    assert is_grey(lines["as sure as it is right"].get_color())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("confidence", "accuracy")


# Columns of frames.


def test_lines_show_the_points_of_each_group_and_named_levels() -> None:
    frame = pd.DataFrame({"layer": [1, 2, 1, 2], "score": [0.5, 0.7, 0.4, 0.6], "model": ["a", "a", "b", "b"]})
    levels = {"plain model": 0.8, "guess": 0.5}
    [axes] = plots.lines(frame, "layer", "score", hue="model", levels=levels, title="Depth").axes
    drawn = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())]
    assert drawn[:2] == [[[1, 0.5], [2, 0.7]], [[1, 0.4], [2, 0.6]]]
    assert legend_of(axes) == ["a", "b", "plain model", "guess"]
    assert axes.get_legend().get_title().get_text() == "model"
    across = named(axes)
    assert {name: set(across[name].get_ydata()) for name in levels} == {"plain model": {0.8}, "guess": {0.5}}
    assert all(is_grey(across[name].get_color()) for name in levels)
    assert across["plain model"].get_linestyle() != across["guess"].get_linestyle()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("layer", "score", "Depth")


def test_lines_over_seeds_are_their_mean_within_an_interval_that_does_not_change() -> None:
    rewards = np.random.default_rng(0).normal(size=(12, 2))
    frame = pd.DataFrame({"step": [0, 1] * 12, "reward": rewards.ravel(), "gradient": "exact"})
    first, again = (plots.lines(frame, "step", "reward", hue="gradient").axes[0] for _ in range(2))
    assert first.lines[0].get_ydata() == pytest.approx(rewards.mean(axis=0))
    band, same = (axes.collections[0].get_paths()[0].vertices for axes in (first, again))
    np.testing.assert_array_equal(band, same)
    for step, values in enumerate(rewards.T):
        width, error = np.ptp(band[band[:, 0] == step, 1]), values.std() / len(values) ** 0.5
        assert width == pytest.approx(2 * 1.96 * error, rel=0.1), "a bootstrap's, of the mean"


def test_a_point_of_its_own_is_seen_where_lines_pass_over_it() -> None:
    rows = [("alone", 3, 0.7), *((name, layer, 0.7) for name in ("line", "other line") for layer in range(1, 7))]
    figure = plots.lines(pd.DataFrame(rows, columns=["model", "layer", "score"]), "layer", "score", hue="model")
    [axes] = figure.axes
    assert pixels(figure, axes, axes.get_legend().legend_handles[0].get_color()) > 20


def test_points_of_two_columns_and_the_line_on_which_they_are_equal() -> None:
    frame = pd.DataFrame({"saved": [0.1, 0.4, 0.6], "measured": [0.2, 0.3, 0.7], "batch": ["1", "32", "32"]})
    [axes] = plots.against(frame, "saved", "measured", hue="batch", diagonal=True, title="Time").axes
    [points] = axes.collections
    assert points.get_offsets().tolist() == frame[["saved", "measured"]].to_numpy().tolist()
    alone, other, same = (tuple(colour) for colour in points.get_facecolor())
    assert alone != other == same
    assert legend_of(axes) == ["1", "32", "equal"]
    assert named(axes)["equal"].get_xydata().tolist() == [[0.1, 0.1], [0.7, 0.7]]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("saved", "measured", "Time")
    plain = plots.against(frame, "saved", "measured").axes[0]
    assert plain.collections[0].get_offsets().tolist() == points.get_offsets().tolist()
    assert (plain.get_legend(), len(plain.lines)) == (None, 0)


def test_scattered_points_have_the_colour_of_their_class_in_every_panel_and_so_have_stars() -> None:
    dots = pd.DataFrame(
        {
            "x": [0.0, 1.0, 2.0, 0.0, 5.0],
            "y": [1.0, 2.0, 0.0, 3.0, 1.0],
            "class": ["bad", "good", "good", "good", "bad"],
            "layer": ["layer 2"] * 3 + ["layer 6"] * 2,
        }
    )
    stars = pd.DataFrame({"x": [9.0, 0.5], "y": [1.0, 1.0], "class": ["good", "bad"], "layer": ["layer 6", "layer 2"]})
    figure = plots.scatter(dots, "x", "y", hue="class", panel="layer", stars=stars, title="Space")
    bad, good = (colors.to_rgba(colour, 1) for colour in ("#0173b2", "#de8f05"))
    for axes, (layer, points) in zip(figure.axes, dots.groupby("layer"), strict=True):
        cloud, star = axes.collections
        assert axes.get_title(loc="left") == layer
        assert cloud.get_offsets().tolist() == points[["x", "y"]].to_numpy().tolist()
        expected = [bad if name == "bad" else good for name in points["class"]]
        assert cloud.get_facecolor()[:, :3] == pytest.approx(np.array(expected)[:, :3], abs=0.01)
        chosen = stars[stars.layer == layer]
        assert star.get_offsets().tolist() == chosen[["x", "y"]].to_numpy().tolist()
        assert colors.same_color(star.get_facecolor()[0], bad if chosen["class"].item() == "bad" else good)
        assert axes.get_aspect() == 1, "distances are what it is read for"
    assert figure.axes[0].get_legend() is None
    assert legend_of(figure.axes[1]) == ["bad", "good"]
    assert figure.get_suptitle() == "Space"


def intervals_of_two() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "exit": ["first", "last", "first", "last"],
            "gain": [0.1, -0.2, 0.3, 0.4],
            "low": [0.05, -0.3, 0.1, 0.35],
            "high": [0.2, -0.1, 0.5, 0.6],
            "wiring": ["parallel", "parallel", "serial", "serial"],
        }
    )


def test_bars_stand_beside_each_other_and_their_whiskers_end_at_the_interval() -> None:
    frame = intervals_of_two()
    [axes] = plots.bars(frame, "exit", "gain", hue="wiring", low="low", high="high", title="Gains").axes
    parallel, serial = [group for group in axes.containers if hasattr(group, "patches")]
    assert [bar.get_height() for bar in (*parallel, *serial)] == frame.gain.tolist()
    assert [round(bar.get_center()[0], 3) for bar in (*parallel, *serial)] == [-0.2, 0.8, 0.2, 1.2]
    assert parallel[0].get_x() + parallel[0].get_width() < serial[0].get_x()
    assert [low[1] for low, _ in ends_of(axes)] == pytest.approx(frame.low.tolist())
    assert [high[1] for _, high in ends_of(axes)] == pytest.approx(frame.high.tolist())
    assert ticks(axes.get_xticklabels()) == ["first", "last"]
    assert legend_of(axes) == ["parallel", "serial"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("exit", "gain", "Gains")
    assert [set(line.get_ydata()) for line in axes.lines] == [{0}], "what is above and what is below nothing"
    assert ends_of(plots.bars(frame, "exit", "gain", hue="wiring").axes[0]) == []


def test_bars_over_numbers_keep_the_order_of_the_frame_and_a_missing_bar_its_place() -> None:
    frame = pd.DataFrame(
        {"layer": [1, 2, 3, 3, 1], "share": [0.2, 0.3, 0.5, 0.6, 0.4], "of": ["train"] * 3 + ["test"] * 2}
    )
    [axes] = plots.bars(frame, "layer", "share", hue="of").axes
    assert ticks(axes.get_xticklabels()) == ["1", "2", "3"]
    places = [[round(bar.get_center()[0], 3) for bar in group] for group in axes.containers]
    assert places == [[-0.2, 0.8, 1.8], [2.2, 0.2]]


def test_intervals_read_from_the_top_and_their_whiskers_end_at_low_and_high() -> None:
    frame = pd.DataFrame({"method": ["best", "worse"], "rank": [1.5, 2.5], "low": [1.0, 2.25], "high": [2.5, 3.0]})
    figure = plots.intervals(frame, "method", "rank", low="low", high="high", levels={"middle": 2.0}, title="Ranks")
    [axes] = figure.axes
    [points] = [line for line in axes.lines if line.get_marker() == "o"]
    assert points.get_xydata().tolist() == [[1.5, 0], [2.5, 1]]
    assert points.get_linestyle() == "None"
    assert ends_of(axes) == [[(1.0, 0.0), (2.5, 0.0)], [(2.25, 1.0), (3.0, 1.0)]]
    assert ticks(axes.get_yticklabels()) == ["best", "worse"]
    assert axes.yaxis_inverted(), "the first row is on top"
    assert set(named(axes)["middle"].get_xdata()) == {2.0}
    assert legend_of(axes)[-1] == "middle"
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("rank", "Ranks")


def test_intervals_of_several_kinds_share_a_row() -> None:
    frame = intervals_of_two()
    [axes] = plots.intervals(frame, "exit", "gain", hue="wiring").axes
    parallel, serial = axes.lines
    assert parallel.get_xydata() == pytest.approx(np.array([[0.1, -0.175], [-0.2, 0.825]]))
    assert serial.get_xydata() == pytest.approx(np.array([[0.3, 0.175], [0.4, 1.175]]))
    assert parallel.get_color() != serial.get_color()
    assert parallel.get_marker() != serial.get_marker()
    assert legend_of(axes) == ["parallel", "serial"]
    assert ends_of(axes) == []
    assert plots.intervals(frame.iloc[:2], "exit", "gain").axes[0].get_legend() is None


def test_intervals_in_panels_stand_in_the_same_rows_and_looks_whatever_a_panel_lacks() -> None:
    rows = [("a", "2x", "one", 0.1), ("a", "3x", "one", 0.2), ("b", "2x", "one", 0.3), ("b", "3x", "two", 0.4)]
    frame = pd.DataFrame(rows, columns=["method", "at", "ground", "gain"]).assign(low=0.0, high=0.5)
    figure = plots.intervals_beside(
        frame, "method", "gain", low="low", high="high", hue="at", panel="ground", level=0.25, title="Gains"
    )
    one, two = figure.axes
    slow, fast = ([line for line in one.lines if line.get_marker() == marker] for marker in ("o", "s"))
    assert slow[0].get_xydata() == pytest.approx(np.array([[0.1, -0.175], [0.3, 0.825]]))
    assert fast[0].get_xydata() == pytest.approx(np.array([[0.2, 0.175]]))
    [alone] = [line for line in two.lines if line.get_marker() == "s"]
    assert alone.get_xydata() == pytest.approx(np.array([[0.4, 1.175]])), "in the row that b has in the other panel"
    assert alone.get_color() == fast[0].get_color()
    assert one.get_ylim() == two.get_ylim()
    assert one.yaxis_inverted()
    assert ticks(one.get_yticklabels()) == ["a", "b"]
    assert ticks(two.get_yticklabels()) == ["", ""]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
    assert all({0.25} in [set(line.get_xdata()) for line in axes.lines] for axes in figure.axes)
    assert figure.get_suptitle() == "Gains"


def test_boxes_show_quartiles_and_the_middle_ninety_percent_of_each_group() -> None:
    values = np.random.default_rng(0).normal(size=(2, 200))
    frame = pd.DataFrame({"layer": np.repeat([6, 2], 200), "loss": values.ravel(), "length": -values.ravel()})
    frame.loc[0, "loss"] = np.nan
    figure = plots.distribution(frame, "layer", ["loss", "length"], title="By layer")
    for axes, column in zip(figure.axes, ("loss", "length"), strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", column)
        assert ticks(axes.get_xticklabels()) == ["2", "6"]
        drawn = [set(line.get_ydata()) for line in axes.lines]
        for box, layer in zip(axes.patches, (2, 6), strict=True):
            rows = frame[frame.layer == layer][column].dropna()
            low, quarter, median, three_quarters, high = np.percentile(rows, [5, 25, 50, 75, 95])
            edges = box.get_path().vertices[:, 1]
            assert (edges.min(), edges.max()) == pytest.approx((quarter, three_quarters))
            assert any(line == {median} for line in drawn)
            # A whisker ends at the last value within.
            assert any(line == {rows[rows >= low].min()} for line in drawn)
            assert any(line == {rows[rows <= high].max()} for line in drawn)
    assert figure.get_suptitle() == "By layer"


# Sentences and matrices.


def test_journeys_frame_the_layer_at_which_a_sentence_leaves_and_fade_what_never_runs() -> None:
    probabilities = np.array([[0.9, 0.95, 0.99], [0.4, 0.6, 0.8]])
    texts = ["costs $5,\n or $6", "long " * 40]
    figure = plots.journeys(texts, probabilities, [0, 2], ["good", "bad"], layers=[2, 4, 6], positive="good")
    axes, bar = figure.axes
    frames = [patch for patch in axes.patches if not patch.get_fill()]
    assert [(frame.get_x(), frame.get_y()) for frame in frames] == [(0, 0), (2, 1)]
    faded = [patch for patch in axes.patches if patch.get_fill()]
    assert [(patch.get_x(), patch.get_y(), patch.get_width()) for patch in faded] == [(1, 0, 2), (3, 1, 0)]
    assert ticks(axes.texts) == ["0.90", "0.95", "0.99", "0.40", "0.60", "0.80"]
    labels = axes.get_yticklabels()
    assert labels[0].get_text() == "costs $5, or $6  (good)"
    assert not labels[0].get_parse_math(), "two prices are no formula"
    assert labels[1].get_text().startswith("long long")
    assert labels[1].get_text().endswith("...  (bad)")
    assert len(labels[1].get_text()) < 70
    assert ticks(axes.get_xticklabels()) == ["2", "4", "6"]
    assert bar.get_ylabel() == "p(good)"
    assert axes.collections[0].get_clim() == (0, 1)


def test_words_have_the_colour_of_the_layer_after_which_they_stop() -> None:
    sentences = [["the", "film", "costs", "$", "5"], ["word"] * 40]
    layers = [[1, 2, 4, 1, 1], [4] * 40]
    figure = plots.words(sentences, layers, depth=4, notes=["by frequency", "all"], title="Words")
    [axes] = figure.axes
    legend = axes.get_legend()
    assert legend_of(axes) == ["layer 1", "layer 2", "layer 3", "layer 4"]
    of_layer = [patch.get_facecolor() for patch in legend.get_patches()]
    assert len(set(of_layer)) == 4
    notes = [text for text in axes.texts if text.get_bbox_patch() is None]
    words = [text for text in axes.texts if text.get_bbox_patch() is not None]
    assert ticks(notes) == ["by frequency", "all"]
    assert ticks(words) == [word for sentence in sentences for word in sentence]
    for word, layer in zip(words, [layer for stops in layers for layer in stops], strict=True):
        box = word.get_bbox_patch().get_facecolor()
        assert box == of_layer[layer - 1]
        ink = colors.to_rgb(word.get_color())
        assert np.abs(np.subtract(box[:3], ink)).max() > 0.5, "readable on its colour"
        assert not word.get_parse_math()
    rows = [word.get_position()[1] for word in words]
    assert len(set(rows[:5])) == 1
    assert len(set(rows[5:])) > 1, "a long sentence goes on in the next line"
    assert max(rows[:5]) < notes[1].get_position()[1] < min(rows[5:])
    places = [word.get_position() for word in words]
    assert len(set(places)) == len(places)
    assert all(0 <= x < 95 for x, _ in places)


def test_words_without_notes_take_no_room_for_them() -> None:
    [axes] = plots.words([["one", "two"]], [[1, 2]], depth=2).axes
    written = [text for text in axes.texts if text.get_text()]
    assert ticks(written) == ["one", "two"]
    assert {text.get_position()[1] for text in written} == {0}


def test_matrices_write_their_entries_in_and_leave_what_is_not_known_empty() -> None:
    named_matrices = {"start": np.array([[1.0, -0.25], [0.5, 1.0]]), "end": np.array([[np.nan, 0.1], [0.2, np.nan]])}
    figure = plots.matrices(named_matrices, [3, 6], axis="exit", value="mean cosine", title="Cosines")
    start, end, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (start, end)] == ["start", "end"]
    assert ticks(start.texts) == ["1.00", "-0.25", "0.50", "1.00"]
    assert ticks(end.texts) == ["0.10", "0.20"]
    assert [text.get_position() for text in end.texts] == [(1.5, 0.5), (0.5, 1.5)]
    for axes in (start, end):
        assert axes.collections[0].get_clim() == (-1, 1), "one scale for all"
        assert ticks(axes.get_xticklabels()) == ticks(axes.get_yticklabels()) == ["3", "6"]
        assert axes.get_xlabel() == "exit"
    assert (start.get_ylabel(), end.get_ylabel()) == ("exit", "")
    assert bar.get_ylabel() == "mean cosine"
    assert figure.get_suptitle() == "Cosines"
    scaled = plots.matrices(named_matrices, [3, 6], axis="exit", value="agreement", low=0.5, high=1.0).axes[0]
    assert scaled.collections[0].get_clim() == (0.5, 1)


def test_shares_are_written_as_percentages_under_the_names_of_their_table() -> None:
    table = pd.DataFrame(
        [[0.25, 0.75], [np.nan, 1.0]],
        index=pd.Index([2, 3], name="memorized layer"),
        columns=pd.Index([1, 6], name="leaves after layer"),
    )
    [axes] = plots.shares(table, title="Where samples leave").axes
    assert ticks(axes.texts) == ["25%", "75%", "100%"]
    assert [text.get_position() for text in axes.texts] == [(0.5, 0.5), (1.5, 0.5), (1.5, 1.5)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("leaves after layer", "memorized layer")
    assert (ticks(axes.get_xticklabels()), ticks(axes.get_yticklabels())) == (["1", "6"], ["2", "3"])
    assert axes.get_title(loc="left") == "Where samples leave"
