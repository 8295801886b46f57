"""What notebook 01 checks its two papers against: noise, clocks, operating points, and the words for a difference."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils.data.texts import is_empty
from eeutils.exiting import rules
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval
from eeutils.papers import pabee
from eeutils.papers.controls.noise import Side, characters, words
from eeutils.papers.controls.time_saved import PLAIN, Clocked
from eeutils.papers.controls.two_baselines import bend, on_one_scale, spoiled_and_mended
from eeutils.reporting.wording import better, told, worse
from eeutils.training.runs import Run
from eeutils.training.settings import Setting

TEXT = "A gripping, searing portrait of a lost soul trying to find her way through life."


@given(st.text(max_size=40), st.floats(0, 1), st.integers(0, 3))
def test_noise_is_a_function_of_its_arguments_and_never_leaves_nothing(text: str, share: float, seed: int) -> None:
    for noise in (characters, words):
        noisy = noise(text, share, seed)
        assert noisy == noise(text, share, seed)
        assert is_empty(text) or not is_empty(noisy)


def test_no_share_spoils_nothing_and_everything_can_be_spoilt() -> None:
    assert characters(TEXT, 0) == TEXT
    assert words(TEXT, 0) == TEXT
    assert characters("word", 1) != "word"
    assert len({words("one two three four", 1, seed) for seed in range(20)}) > 3


def test_noise_on_letters_leaves_everything_else_and_noise_on_words_leaves_words() -> None:
    assert [mark for mark in characters(TEXT, 0.5) if not mark.isalpha()] == [
        mark for mark in TEXT if not mark.isalpha()
    ]
    assert set(words(TEXT, 0.5).split()) < set(TEXT.split())


def test_a_larger_share_spoils_more() -> None:
    texts = [f"{TEXT} number {number}" for number in range(50)]
    lengths = [sum(len(words(text, share).split()) for text in texts) for share in (0.0, 0.2, 0.5, 1.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] * 0.85 < lengths[1] < lengths[0] * 0.95  # half of a fifth is dropped, the others trade places


def evidence(right: list[list[int]]) -> Evidence:
    """Two classes, label 1; each exit is right where the matrix says so, and surer the deeper it is."""
    answers = torch.tensor(right).double()
    depth = torch.arange(1, len(right) + 1)[:, None] * (2 * answers - 1)
    return Evidence.from_logits(
        torch.stack([-depth / 2, depth / 2], dim=-1).float(), torch.ones(answers.shape[1], dtype=torch.long)
    )


def test_a_side_without_a_rule_is_the_last_exit_and_one_out_of_reach_is_none(tmp_path: Path) -> None:
    run = Run(tmp_path, pabee.METHOD, Setting(), pabee.METHOD.options)
    told_by = evidence([[0, 1, 0], [1, 1, 0]])
    assert [each.tolist() for each in Side(run).read(told_by).predictions] == [[1, 1, 0]] * 2
    assert Side(run, rules.entropy(), 5.0).read(told_by) is None


def test_spoiled_and_mended_by_hand() -> None:
    table = spoiled_and_mended(evidence([[1, 1, 0, 0], [0, 1, 1, 0]]), evidence([[1, 0, 0, 0], [1, 0, 0, 0]]))
    assert table.iloc[0].tolist() == [1, 1, 1, 1.0, 1.0]


def test_a_curve_without_a_bend_has_none_and_one_out_of_reach_says_so() -> None:
    flat = evidence([[1] * 30] * 5)
    found = bend(flat, rules.fixed(), lambda said, truth: float((said == truth).mean()))
    assert (found.before, found.beyond, found.turning.low, found.turning.high) == (0, 0, 0, 0)
    assert bend(evidence([[1] * 30] * 2), rules.fixed(), lambda said, truth: 1.0) is None


def test_a_bend_is_the_loss_per_share_beyond_minus_before() -> None:
    # Ten layers; the exits after layers 4 and 6 are right on 6 and on 9 of 10.
    scores = {4: 6, 6: 9, 10: 10}
    falls = evidence([[1] * scores.get(layer, 10) + [0] * (10 - scores.get(layer, 10)) for layer in range(1, 11)])
    found = bend(falls, rules.fixed(), lambda said, truth: float((said == truth).mean()))
    assert found.before == pytest.approx(0.1 / 0.4)
    assert found.beyond == pytest.approx(0.3 / 0.2)
    assert found.turning.estimate == pytest.approx(0.3 / 0.2 - 0.1 / 0.4)


def test_exits_on_one_scale() -> None:
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0])
    timid = Evidence.from_logits(torch.stack([0.1 * labels + 1, labels])[..., None], labels)
    assert torch.allclose(on_one_scale(timid, timid).logits[..., 0], labels.expand(2, 4), atol=1e-4)


def clocked(seconds: list[float], layers_saved: list[float]) -> Clocked:
    """Three rounds of two sentences; the plain model takes a second."""
    tracks = {str(number): np.full((3, 2), each) for number, each in enumerate(seconds)}
    thresholds = (rules.NEVER, *np.linspace(0.9, 0.1, len(seconds) - 1))
    return Clocked(thresholds, np.array(layers_saved), {PLAIN: np.ones((3, 2)), **tracks})


def test_time_saved_is_a_share_of_the_plain_models_and_makes_a_line() -> None:
    found = clocked([1.1, 0.9, 0.7, 0.5], [0.0, 0.25, 0.5, 0.75])
    assert np.allclose(found.time_saved(), [-0.1, 0.1, 0.3, 0.5])
    assert found.milliseconds() == 1000
    assert found.milliseconds(rules.NEVER) == pytest.approx(1100)
    slope, intercept = found.line()
    assert (slope.estimate, intercept.estimate) == (pytest.approx(0.8), pytest.approx(-0.1))
    assert (slope.low, slope.high) == (pytest.approx(0.8), pytest.approx(0.8))


def test_one_round_that_was_held_up_does_not_count() -> None:
    found = clocked([1.0, 0.5, 0.4], [0.0, 0.5, 0.6])
    found.seconds["1"][0] = 60
    assert np.allclose(found.time_saved(), [0, 0.5, 0.6])


def test_a_line_needs_three_thresholds_that_differ() -> None:
    slope, intercept = clocked([1.0, 0.5, 0.4], [0.0, 0.5, 0.5]).line()
    assert math.isnan(slope.estimate)
    assert math.isnan(intercept.low)


def test_a_difference_is_told_no_stronger_than_its_interval() -> None:
    above, across = Interval(0.02, 0.01, 0.03, units=1600), Interval(0.0, -0.01, 0.01, units=1600)
    assert told(above) == "+0.020 [+0.010, +0.030], above 0"
    assert told(across) == "+0.000 [-0.010, +0.010], which cannot be told from 0 on 1,600 sentences"
    assert told(None) == "out of reach"
    assert told(Interval(math.nan, math.nan, math.nan)) == "undefined here"
    assert (better(above), worse(above), better(across), worse(None)) == (True, False, False, False)
