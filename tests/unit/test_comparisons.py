"""Two curves at equal cost: against numbers worked out by hand, and what a claim's comparisons leave out."""

import importlib
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial

import numpy as np
import pytest
import torch

from eeutils.errors import InputError
from eeutils.exiting import rules
from eeutils.exiting.claims import MIXED, NOT_TESTABLE, REPRODUCED, ledger
from eeutils.exiting.comparisons import (
    Comparison,
    Side,
    against_rivals,
    at_equal_cost,
    evaluate,
    mean_over_exits,
    over_blind,
    verdict,
)
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.papers import comparisons as papers_comparisons
from eeutils.papers.comparisons import ABOUT_TREATMENTS, COMPARISONS, judged
from tests.helpers import accuracy, make_evidence, negative_error, random_evidence

SAMPLES = 60


def right_at(*stages: list[int], groups: list[int] | None = None, **about: int) -> Evidence:
    """Evidence of two classes: for each stage, the samples of `SAMPLES` that it gets right."""
    right = torch.zeros(len(stages), SAMPLES)
    for stage, samples in enumerate(stages):
        right[stage, samples] = 1
    return make_evidence(torch.stack([1 - right, right], dim=-1), [1] * SAMPLES, groups=groups, **about)


def every(step: int) -> list[int]:
    return list(range(0, SAMPLES, step))


def is_right(samples: list[int]) -> np.ndarray:
    return np.isin(np.arange(SAMPLES), samples).astype(float)


OURS, THEIRS = right_at(every(2), every(1)), right_at(every(4), every(3))
"""Two layers each: right on 1/2 and then on all; on 1/4 and then on 1/3."""

by_layers = partial(at_equal_cost, metric=accuracy, axis="layers", resamples=200)


def of_mean(differences: np.ndarray, **options: object) -> Interval:
    """The bootstrap of the mean of one difference per sample."""
    return bootstrap(lambda _, rows: differences[rows].mean(), SAMPLES, resamples=200, **options)


def assert_same(interval: Interval, other: Interval) -> None:
    assert astuple(interval) == pytest.approx(astuple(other), abs=1e-12)


@pytest.mark.parametrize(
    ("speedup", "share", "estimate"),
    # 4/3 costs 3 layers of 4: half of the samples through the first exit, half through the second.
    [(2.0, 1.0, 1 / 2 - 1 / 4), (1.0, 0.0, 1 - 1 / 3), (4 / 3, 0.5, 3 / 4 - 7 / 24)],
)
def test_the_difference_at_equal_cost_is_that_of_each_sample_by_hand(
    speedup: float, share: float, estimate: float
) -> None:
    differences = share * (is_right(every(2)) - is_right(every(4))) + (1 - share) * (1 - is_right(every(3)))
    interval = by_layers((OURS, rules.fixed()), (THEIRS, rules.fixed()), speedup)
    assert interval.estimate == pytest.approx(estimate)
    assert_same(interval, of_mean(differences))


def test_flops_are_the_axis_unless_another_is_asked_for() -> None:
    # One layer and one head cost 11, the plain model 21: 1.5x is less than one layer is worth in layers.
    cheapest = 21 / 11
    interval = at_equal_cost((OURS, rules.fixed()), (THEIRS, rules.fixed()), cheapest, accuracy)
    assert interval.estimate == pytest.approx(1 / 4)
    assert at_equal_cost((OURS, rules.fixed()), (THEIRS, rules.fixed()), 2.0, accuracy) is None
    assert by_layers((OURS, rules.fixed()), (THEIRS, rules.fixed()), 2.0).estimate == pytest.approx(1 / 4)


def test_where_one_side_does_not_reach_there_is_no_interval() -> None:
    plain = (right_at(every(3), layers=(2,)), rules.fixed())
    fixed = (OURS, rules.fixed())
    assert by_layers(fixed, plain, 2.0) is None
    assert by_layers(plain, fixed, 2.0) is None
    assert by_layers([fixed, fixed], [fixed, plain], 2.0) is None
    assert by_layers(fixed, fixed, 2.5) is None


def test_the_other_side_may_be_read_elsewhere() -> None:
    plain = (right_at(every(3), layers=(2,)), rules.fixed())
    interval = by_layers((OURS, rules.fixed()), plain, 2.0, their_speedup=1.0)
    assert interval.estimate == pytest.approx(1 / 2 - 1 / 3)
    assert_same(interval, of_mean(is_right(every(2)) - is_right(every(3))))


def test_one_curve_a_seed_is_paired_by_seed() -> None:
    better = right_at(every(1), every(1))
    ours, theirs = [(OURS, rules.fixed()), (better, rules.fixed())], [(THEIRS, rules.fixed())] * 2
    interval = by_layers(ours, theirs, 2.0)
    by_seed = [is_right(every(2)) - is_right(every(4)), 1 - is_right(every(4))]
    both = bootstrap(lambda seed, rows: by_seed[seed][rows].mean(), SAMPLES, 2, resamples=200)
    assert interval.estimate == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert_same(interval, both)
    with pytest.raises(InputError, match="same seeds on both sides; got 2 and 1"):
        by_layers(ours, theirs[:1], 2.0)


def test_samples_that_belong_together_are_drawn_together() -> None:
    # The first half of ours is right, so that groups of ten are right or wrong as one.
    groups = [sample // 10 for sample in range(SAMPLES)]
    ours, theirs = right_at(every(1)[:30], every(1), groups=groups), right_at([], [], groups=groups)
    interval = by_layers((ours, rules.fixed()), (theirs, rules.fixed()), 2.0)
    alone = by_layers((replace(ours, groups=None), rules.fixed()), (replace(theirs, groups=None), rules.fixed()), 2.0)
    assert_same(interval, of_mean(is_right(every(1)[:30]), groups=np.array(groups)))
    assert interval.high - interval.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    "other",
    [replace(THEIRS, ids=THEIRS.ids.flip(0)), THEIRS.take(torch.arange(30)), replace(THEIRS, labels=None)],
    ids=["other order", "fewer", "no labels"],
)
def test_curves_of_other_samples_cannot_be_paired(other: Evidence) -> None:
    with pytest.raises(InputError, match="same labelled samples, in the same order"):
        by_layers((OURS, rules.fixed()), (other, rules.fixed()), 2.0)
    with pytest.raises(InputError, match="same labelled samples, in the same order"):
        mean_over_exits([OURS], [other], accuracy)


def test_rivals_stand_in_a_table_of_sentences() -> None:
    rivals = {"theirs": (THEIRS, rules.fixed()), "plain": (right_at(every(3), layers=(2,)), rules.fixed())}
    table = against_rivals((OURS, rules.fixed()), rivals, (1.0, 2.0), accuracy, "layers")
    assert table.index.tolist() == ["minus theirs", "minus plain"]
    assert table.columns.tolist() == ["1x", "2x"]
    assert table.loc["minus plain", "2x"] == "out of reach"
    assert table.loc["minus theirs", "2x"].startswith("0.250 [")


def test_the_mean_over_exits_by_hand() -> None:
    interval = mean_over_exits([OURS], [THEIRS], accuracy, resamples=200)
    differences = (is_right(every(2)) + 1 - is_right(every(4)) - is_right(every(3))) / 2
    assert interval.estimate == pytest.approx((1 / 2 + 1) / 2 - (1 / 4 + 1 / 3) / 2)
    assert_same(interval, of_mean(differences))
    with pytest.raises(InputError, match="same seeds on both sides"):
        mean_over_exits([OURS, OURS], [THEIRS], accuracy)


OVER_THEIRS = Comparison("D1", Side("ours"), Side("theirs"), (1.0, 2.0, 5.0), axis="layers")


def test_all_that_both_sides_reach_is_evaluated_and_says_what_was_compared() -> None:
    curves = {"ours": (OURS, rules.fixed()), "theirs": (THEIRS, rules.fixed())}
    compared = evaluate([OVER_THEIRS], curves, accuracy, resamples=200)
    assert [each.speedup for each in compared] == [1.0, 2.0]
    assert [each.seeds for each in compared] == [1, 1]
    for each in compared:
        assert each.interval == by_layers(curves["ours"], curves["theirs"], each.speedup)
    twice = evaluate([OVER_THEIRS], {name: [curve, curve] for name, curve in curves.items()}, accuracy, resamples=20)
    assert [each.seeds for each in twice] == [2, 2]


def test_a_side_with_a_rule_of_its_own_is_read_by_it() -> None:
    # By the oracle all samples that the first exit gets right leave there.
    comparison = Comparison("D1", Side("ours", rules.oracle()), Side("ours"), (4 / 3,), axis="layers")
    [compared] = evaluate([comparison], {"ours": (OURS, rules.fixed())}, accuracy)
    assert compared.interval.estimate == pytest.approx(1 - 3 / 4)
    assert str(comparison) == "ours by oracle minus ours"
    assert str(replace(comparison, their_speedup=1.0)) == "ours by oracle minus ours at 1x"


def test_where_theirs_is_read_and_in_which_axis_is_part_of_a_comparison() -> None:
    curves = {"ours": (OURS, rules.fixed()), "theirs": (THEIRS, rules.fixed())}
    [at_full] = evaluate([replace(OVER_THEIRS, speedups=(2.0,), their_speedup=1.0)], curves, accuracy)
    assert at_full.interval.estimate == pytest.approx(1 / 2 - 1 / 3)
    assert evaluate([replace(OVER_THEIRS, speedups=(2.0,), axis="flops")], curves, accuracy) == []


def test_missing_curves_and_the_other_kind_of_task_are_left_out() -> None:
    ours = {"ours": (OURS, rules.fixed())}
    assert evaluate([OVER_THEIRS], ours, accuracy) == []
    assert evaluate([OVER_THEIRS], {"theirs": ours["ours"]}, accuracy) == []
    both = ours | {"theirs": (THEIRS, rules.fixed())}
    assert evaluate([replace(OVER_THEIRS, regression=True)], both, accuracy) == []
    numbers = random_evidence(0, 2, 20, 1)
    of_numbers = {name: (numbers, rules.fixed()) for name in both}
    assert evaluate([OVER_THEIRS], of_numbers, negative_error) == []
    compared = evaluate([replace(OVER_THEIRS, regression=True)], of_numbers, negative_error)
    assert [each.interval.estimate for each in compared] == [0, 0]


def test_a_verdict_is_by_all_that_was_compared_for_the_claim_and_tells_where() -> None:
    curves = {"ours": (OURS, rules.fixed()), "theirs": (THEIRS, rules.fixed())}
    other = replace(OVER_THEIRS, claim="P2", ours=Side("theirs"), theirs=Side("ours"))
    compared = evaluate([OVER_THEIRS, other], curves, accuracy)
    over = verdict("D1", compared, "two layers")
    assert over.outcome == REPRODUCED
    assert over.ours == "; ".join(str(each.interval) for each in compared[:2])
    assert over.note == "two layers; ours at 1x and 2x minus theirs"
    halves = verdict("D1", [compared[0], replace(compared[2], comparison=OVER_THEIRS)])
    assert halves.outcome == MIXED


@pytest.mark.parametrize(("note", "wanted"), [("quick", "quick; the curves"), ("", "the curves")])
def test_without_a_comparison_a_claim_is_not_testable_and_says_why(note: str, wanted: str) -> None:
    nothing = verdict("D1", [], note)
    assert nothing.outcome == NOT_TESTABLE
    assert nothing.note == f"{wanted} do not reach the speed-ups it is about"


@pytest.mark.parametrize("judge", [lambda: verdict("Z9", []), lambda: judged("Z9", {}, accuracy)])
def test_an_unknown_claim_is_refused(judge: Callable) -> None:
    with pytest.raises(InputError, match="unknown claim 'Z9'; choose one of: B1a"):
        judge()


def test_what_papers_claim_is_in_the_ledger_and_about_that_paper_s_own_curve() -> None:
    claims = ledger()
    modules = {claim.paper: importlib.import_module(f"eeutils.papers.{claim.paper}") for claim in claims.values()}
    # Papers on writing are about rules on one decoder, and train no method of their own.
    titles = {paper: module.METHOD.title for paper, module in modules.items() if hasattr(module, "METHOD")}
    controls = {
        name for constant, name in vars(papers_comparisons).items() if constant.isupper() and isinstance(name, str)
    }
    assert set(claims) >= ABOUT_TREATMENTS
    for comparison in COMPARISONS:
        assert comparison.ours.name.startswith(titles[claims[comparison.claim].paper]), comparison
        assert {comparison.ours.name, comparison.theirs.name} <= {*titles.values(), *controls}, comparison
        for side in (comparison.ours, comparison.theirs):
            if side.rule is not None:
                side.rule.check(1 if comparison.regression else 2)


PABEE = importlib.import_module("eeutils.papers.pabee").METHOD.title


def test_a_claim_is_judged_by_its_own_comparisons() -> None:
    # PABEE by patience against itself by entropy: read by entropy both, the same samples leave; two layers with their
    # heads are no 2x in FLOPs.
    outcome = judged("P2", {PABEE: (OURS, rules.entropy())}, accuracy, "by entropy both")
    assert outcome.claim == ledger()["P2"]
    assert outcome.note.startswith("by entropy both; PABEE at 1.25x and 1.5x minus PABEE by entropy")
    assert set(outcome.ours.split("; ")) == {"0.000 [0.000, 0.000]"}


@pytest.mark.parametrize("name", ["PABEE", "plain model"])
def test_a_claim_about_a_curve_that_is_unfit_is_not_testable_whichever_side_it_is(name: str) -> None:
    curves = {PABEE: (OURS, rules.fixed()), "plain model": (right_at(every(3), layers=(2,)), rules.fixed())}
    assert judged("P1", curves, accuracy).outcome != NOT_TESTABLE
    refused = judged("P1", curves, accuracy, "two layers", unfit={name: "layer 1 has not learned", "BADGE": "no"})
    assert (refused.outcome, refused.note, refused.ours) == (NOT_TESTABLE, "layer 1 has not learned", "")
    kept = judged("P1", curves, accuracy, unfit={"BADGE": "another one's affair"})
    assert kept == judged("P1", curves, accuracy)


def blind_of(*stages: list[int], dev: list[list[int]]) -> tuple[Evidence, Evidence]:
    """A checkpoint: what its stages get right of dev, which alone chooses, and of the samples that are asked about."""
    return right_at(*dev), right_at(*stages)


by_layers_over_blind = partial(over_blind, metric=accuracy, axis="layers", resamples=200)


def test_over_blind_is_the_distance_to_the_stage_that_dev_prefers_by_hand() -> None:
    curve = (OURS, rules.fixed())
    # At 2x the first stage of either: dev prefers that of the second checkpoint, which test does not.
    first = blind_of(every(2), every(1), dev=[every(6), every(6)])
    second = blind_of(every(5), every(1), dev=[every(4), every(6)])
    interval = by_layers_over_blind(curve, [[first, second]], 2.0)
    assert interval.estimate == pytest.approx(1 / 2 - 1 / 5)
    assert_same(interval, of_mean(is_right(every(2)) - is_right(every(5))))
    # Against itself alone, nothing is gained: these are the very answers.
    own = by_layers_over_blind(curve, [[first]], 2.0)
    assert (own.estimate, own.low, own.high) == (0, 0, 0)


def test_over_blind_a_mixture_costs_as_much_and_counts_by_its_shares() -> None:
    # At 4/3 half of the samples through each stage, as dev has the second stage ahead of the first.
    checkpoint = blind_of(every(5), every(3), dev=[every(6), every(2)])
    interval = by_layers_over_blind((OURS, rules.fixed()), [[checkpoint]], 4 / 3)
    assert interval.estimate == pytest.approx(3 / 4 - (1 / 5 + 1 / 3) / 2)
    differences = (is_right(every(2)) + 1) / 2 - (is_right(every(5)) + is_right(every(3))) / 2
    assert_same(interval, of_mean(differences))


def test_over_blind_needs_both_sides_to_be_that_fast_and_the_same_samples() -> None:
    shallow, deep = blind_of(every(2), every(1), dev=[every(2), every(1)]), (right_at(every(3), layers=(2,)),) * 2
    curve, plain = (OURS, rules.fixed()), (deep[1], rules.fixed())
    assert by_layers_over_blind(plain, [[shallow]], 2.0) is None
    assert by_layers_over_blind(curve, [[deep]], 2.0) is None
    assert by_layers_over_blind([curve, curve], [[shallow], [deep]], 2.0) is None
    assert by_layers_over_blind([curve, curve], [[shallow], [shallow]], 2.0).seeds == 2
    with pytest.raises(InputError, match="same labelled samples, in the same order"):
        by_layers_over_blind(curve, [[(shallow[0], replace(THEIRS, ids=THEIRS.ids.flip(0)))]], 2.0)
