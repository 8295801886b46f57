"""Every rule against a loop over samples and stages written here, and what all rules must have in common."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from eeutils.errors import InputError
from eeutils.exiting import rules
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.tradeoff import decide
from tests.helpers import every_rule, make_evidence, random_evidence, regression_rules

ALL = every_rule()
NUMBERS = regression_rules()
CLASSES_ONLY = [name for name, rule in ALL.items() if not rule.regression]

few = settings(max_examples=20)  # each example goes through many stages, samples and rules

shapes = {
    "seed": st.integers(0, 2**32 - 1),
    "stages": st.integers(1, 8),
    "samples": st.integers(1, 4),
    # 1e4 is far beyond where exp() of a logit over- or underflows; a coarse step makes ties.
    "scale": st.sampled_from([0.01, 1.0, 5.0, 100.0, 1e4]),
    "step": st.sampled_from([None, 0.5, 5.0]),
}

History = list[list[float]]
"""What the stages so far said of ONE sample: a list of logits per stage. The references below see no more."""


def log_p(logits: list[float]) -> list[float]:
    top = max(logits)
    log_sum = math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - top - log_sum for z in logits]


def p(logits: list[float]) -> list[float]:
    return [math.exp(value) for value in log_p(logits)]


def entropy_of(probabilities: list[float]) -> float:
    return -math.fsum(value * math.log(value) for value in probabilities if value > 0)


def doubt(history: History) -> float:
    return entropy_of(p(history[-1])) / math.log(len(history[-1]))


def answer_of(logits: list[float]) -> int:
    return logits.index(max(logits))


def patience_of(history: History, agree: Callable[[list[float], list[float]], bool]) -> int:
    count = 0
    for before, now in itertools.pairwise(history):
        count = count + 1 if agree(before, now) else 0
    return count


def kl(first: list[float], second: list[float]) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p(first), log_p(second), strict=True))


def jsd(first: list[float], second: list[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p(first), p(second), strict=True)]
    return entropy_of(middle) - (entropy_of(p(first)) + entropy_of(p(second))) / 2


def distance(kind: str, before: list[float], now: list[float]) -> float:
    if kind == "mean-entropy":
        return entropy_of([(a + b) / 2 for a, b in zip(p(before), p(now), strict=True)])
    return {
        "kl": kl(before, now),
        "reverse-kl": kl(now, before),
        "symmetric-kl": (kl(before, now) + kl(now, before)) / 2,
        "jsd": jsd(before, now),
    }[kind]


def divergence_of(kind: str, against: str, history: History) -> float:
    *earlier, now = history
    if not earlier:
        return -math.inf
    distances = [distance(kind, before, now) for before in earlier]
    return -{"previous": distances[-1], "mean": sum(distances) / len(distances), "max": max(distances)}[against]


def votes_of(history: History) -> list[int]:
    ballots = [answer_of(logits) for logits in history]
    return [ballots.count(name) for name in range(len(history[0]))]


def two_in_a_row(history: History) -> float:
    return min(1 - doubt(history), 1 - doubt(history[:-1])) if len(history) > 1 else -math.inf


def harmonic_of(a: float, b: float, weight: float) -> float:
    return 1 - (0 if a == 0 or b == 0 else (weight + 1) / (weight / a + 1 / b))


REFERENCES: list[tuple[rules.Rule, Callable[[History], float]]] = [
    (rules.entropy(), lambda history: 1 - doubt(history)),
    (rules.confidence(), lambda history: max(p(history[-1]))),
    (rules.margin(), lambda history: sorted(p(history[-1]))[-1] - sorted(p(history[-1]))[-2]),
    (rules.patience(), lambda history: patience_of(history, lambda a, b: answer_of(a) == answer_of(b))),
    (rules.vote(), lambda history: max(votes_of(history))),
    (rules.fixed(), lambda history: float(len(history))),
    (rules.sustained(rules.entropy(), 2), two_in_a_row),
    (
        rules.harmonic(rules.entropy(), rules.confidence(), 0.5),
        lambda history: harmonic_of(doubt(history), 1 - max(p(history[-1])), 0.5),
    ),
    *(
        (
            rules.divergence(kind, against),
            lambda history, kind=kind, against=against: divergence_of(kind, against, history),
        )
        for kind in rules.DIVERGENCES
        for against in rules.AGAINST
    ),
]


def expected(evidence: Evidence, reference: Callable[[History], float]) -> torch.Tensor:
    """The reference, stage by stage and sample by sample."""
    rows = [
        [float(reference(evidence.logits[: stage + 1, sample].double().tolist())) for sample in range(evidence.samples)]
        for stage in range(evidence.stages)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("rule", "reference"), REFERENCES, ids=lambda value: getattr(value, "name", ""))
@few
@given(classes=st.integers(2, 4), **shapes)
def test_readiness_equals_a_loop_over_single_samples(
    rule: rules.Rule,
    reference: Callable[[History], float],
    seed: int,
    stages: int,
    samples: int,
    classes: int,
    scale: float,
    step: float | None,
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    torch.testing.assert_close(rule.readiness(evidence).double(), expected(evidence, reference), atol=1e-9, rtol=1e-9)


@few
@given(tolerance=st.sampled_from([0.1, 1.0]), **shapes)
def test_regression_patience_counts_steps_closer_than_the_tolerance(
    seed: int, stages: int, samples: int, scale: float, step: float | None, tolerance: float
) -> None:
    evidence = random_evidence(seed, stages, samples, 1, scale, step)
    wanted = expected(evidence, lambda history: patience_of(history, lambda a, b: abs(a[0] - b[0]) < tolerance))
    assert torch.equal(rules.patience(tolerance).readiness(evidence), wanted)


@pytest.mark.parametrize("against", rules.AGAINST)
def test_regression_divergence_is_the_distance_of_the_numbers(against: str) -> None:
    evidence = make_evidence([[[0.0]], [[3.0]], [[2.0]]])
    wanted = {"previous": -1.0, "mean": -1.5, "max": -2.0}[against]
    assert rules.divergence("jsd", against).readiness(evidence)[:, 0].tolist() == [-math.inf, -3.0, wanted]


@few
@given(stage=st.integers(0, 7), classes=st.integers(1, 4), **shapes)
def test_what_later_stages_say_never_changes_readiness_or_answers(
    stage: int, seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    other = random_evidence(seed + 1, stages, samples, classes, scale, step)
    stage = min(stage, stages - 1)
    end = stage + 1
    changed = replace(
        evidence,
        logits=torch.cat([evidence.logits[:end], other.logits[end:]]),
        extras={name: torch.cat([extra[:end], other.extras[name][end:]]) for name, extra in evidence.extras.items()},
    )
    for rule in (ALL if classes > 1 else NUMBERS).values():
        whole = rule.readiness(evidence)[:end]
        assert torch.equal(rule.readiness(changed)[:end], whole), rule.name
        assert torch.equal(rule.readiness(evidence.upto(stage)), whole), rule.name
        assert torch.equal(rule.answers(changed)[:end], rule.answers(evidence)[:end]), rule.name
        assert torch.equal(rule.answers(evidence.upto(stage)), rule.answers(evidence)[:end]), rule.name


@few
@given(stage=st.integers(0, 7), classes=st.integers(1, 4), **shapes)
def test_a_rule_says_the_same_when_it_is_given_no_more_than_the_stages_that_it_reads(
    stage: int, seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    stage = min(stage, stages - 1)
    for rule in (ALL if classes > 1 else NUMBERS).values():
        held = evidence.upto(stage, rule.reads)
        assert held.stages == (stage + 1 if rule.reads is None else min(rule.reads, stage + 1)), rule.name
        assert torch.equal(rule.readiness(held)[-1], rule.readiness(evidence)[stage]), rule.name
        assert torch.equal(rule.answers(held)[-1], rule.answers(evidence)[stage]), rule.name


@pytest.mark.parametrize("rule", [rule for rule in ALL.values() if rule.reads != 1], ids=lambda rule: rule.name)
def test_no_rule_asks_for_more_stages_than_it_reads(rule: rules.Rule) -> None:
    # All stages agree on a class, each in its own way.
    generator = torch.Generator().manual_seed(0)
    evidence = make_evidence(torch.tensor([4.0, 0.0, 0.0]) + torch.rand(6, 30, 3, generator=generator), [0] * 30)
    evidence = replace(evidence, extras={"distances": torch.rand(6, 30, 3, generator=generator)})
    fewer = evidence.upto(5, (rule.reads or 6) - 1)
    assert not torch.equal(rule.readiness(fewer)[-1], rule.readiness(evidence)[-1])


def test_how_far_back_rules_look() -> None:
    reads = {name: rule.reads for name, rule in ALL.items()}
    assert [reads[name] for name in ("entropy", "margin", "policy", "fixed exits", "random", "oracle")] == [1] * 6
    assert [reads[name] for name in ("divergence (jsd)", "entropy, 2 in a row")] == [2, 2]
    assert reads["divergence (jsd), 3 in a row"] == 4
    assert [reads[name] for name in ("patience", "vote", "divergence (kl, max of earlier)")] == [None] * 3
    assert rules.harmonic(rules.sustained(rules.entropy(), 3), rules.confidence()).reads == 3


@few
@given(classes=st.integers(1, 4), **shapes)
def test_readiness_of_a_sample_does_not_depend_on_the_others_in_its_batch(
    seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    rows = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[: samples // 2 + 1]
    for rule in (ALL if classes > 1 else NUMBERS).values():
        together, apart = rule.readiness(evidence)[:, rows], rule.readiness(evidence.take(rows))
        torch.testing.assert_close(apart, together, atol=1e-12, rtol=1e-12, msg=rule.name)


@few
@given(classes=st.integers(1, 4), **shapes)
def test_readiness_is_never_nan_and_stays_in_the_range_of_its_rule(
    seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    for rule in (ALL if classes > 1 else NUMBERS).values():
        readiness = rule.readiness(evidence)
        assert readiness.shape == (stages, samples), rule.name
        assert not readiness.isnan().any(), rule.name
        assert (readiness <= rule.high).all(), rule.name
        # Below `low` stands only who cannot leave yet: a run of 0, no votes in a row, the wrong answer.
        if (rule.low, rule.high) == (0.0, 1.0):
            assert (readiness[readiness.isfinite()] >= 0).all(), rule.name


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_uniform_logits_have_entropy_one_and_confident_ones_zero(classes: int) -> None:
    uniform, sure = torch.zeros(classes), torch.full((classes,), -1e4)
    sure[1] = 1e4
    evidence = make_evidence(torch.stack([uniform, sure])[:, None])
    assert evidence.entropy[:, 0].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert rules.confidence().readiness(evidence)[:, 0].tolist() == pytest.approx([1 / classes, 1.0])
    assert rules.margin().readiness(evidence)[:, 0].tolist() == pytest.approx([0.0, 1.0])


def test_the_most_confident_samples_are_the_readiest() -> None:
    # The formulas of the reference code overflow or give NaN here, and NaN never leaves.
    gaps = torch.tensor([0.0, 1.0, 10.0, 30.0, 100.0, 1000.0, 2e4])
    evidence = make_evidence(torch.stack([torch.zeros_like(gaps), gaps], dim=-1)[None].repeat(2, 1, 1))
    for rule in (rules.entropy(), rules.confidence(), rules.margin()):
        readiness = rule.readiness(evidence)[0]
        assert (readiness.diff() >= 0).all()
        assert decide(evidence, rule, 0.5).stages[2:].tolist() == [0] * 5


@pytest.mark.parametrize("rule", ALL.values(), ids=list(ALL))
def test_a_check_needs_the_number_of_classes_and_nothing_that_was_recorded(rule: rules.Rule) -> None:
    for classes in (2, 5):
        rule.check(classes)
        rule.check(classes, rule.high)
        with pytest.raises(InputError, match="outside the range"):
            rule.check(classes, math.nan)
    if rule.regression:
        rule.check(1)
    else:
        with pytest.raises(InputError, match=r"regression.*use patience"):
            rule.check(1)


@pytest.mark.parametrize("name", CLASSES_ONLY)
def test_regression_never_takes_the_path_of_a_rule_on_probabilities(name: str) -> None:
    evidence = random_evidence(0, 4, 5, 1)
    with pytest.raises(InputError, match=r"regression.*use patience"):
        decide(evidence, ALL[name], rules.NEVER)


def test_every_rule_on_probabilities_refuses_regression() -> None:
    assert {"entropy", "confidence", "margin", "vote", "oracle", "entropy, 2 in a row"} <= set(CLASSES_ONLY)
    assert any(name.startswith("harmonic") for name in CLASSES_ONLY)
    with pytest.raises(InputError, match="not a distribution"):
        _ = random_evidence(0, 2, 3, 1).log_probabilities


@few
@given(t=st.integers(1, 7), classes=st.integers(2, 3), **shapes)
def test_patience_t_leaves_at_stage_t_plus_one_at_the_earliest_and_no_sooner_than_t_plus_one_votes(
    t: int, seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    patient = decide(evidence, rules.patience(), t).stages + 1
    assert (patient >= min(t + 1, stages)).all()
    assert (patient >= decide(evidence, rules.vote(), t + 1).stages + 1).all()


def test_patience_is_counted_per_sample() -> None:
    # The first sample agrees at every stage, the second never: a batch that waits for all would keep both.
    steady, wavering = [[1.0, 0.0]] * 4, [[1.0, 0.0], [0.0, 1.0]] * 2
    evidence = make_evidence(torch.tensor([steady, wavering]).transpose(0, 1))
    assert decide(evidence, rules.patience(), 2).stages.tolist() == [2, 3]


def test_patience_of_regression_leaves_when_numbers_stay_close() -> None:
    evidence = make_evidence(torch.tensor([0.0, 1.0, 1.05, 1.09, 3.0])[:, None, None])
    assert rules.patience(0.1).readiness(evidence)[:, 0].tolist() == [0, 0, 1, 2, 0]
    assert decide(evidence, rules.patience(0.1), 2).stages.tolist() == [3]
    with pytest.raises(InputError, match="tolerance must be above 0"):
        rules.patience(0.0)


@few
@given(classes=st.integers(2, 4), **shapes)
def test_jensen_shannon_is_at_most_ln_2_and_what_f_pabee_computes_adds_the_mean_entropy(
    seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, max(stages, 2), samples, classes, scale, step)
    between = -rules.divergence("jsd").readiness(evidence)[1:]
    assert (between <= math.log(2) + 1e-12).all()
    # H(m) = JSD(p, q) + (H(p) + H(q)) / 2
    entropies = evidence.entropy * math.log(classes)
    means = (entropies[1:] + entropies[:-1]) / 2
    torch.testing.assert_close(-rules.divergence("mean-entropy").readiness(evidence)[1:], between + means)


def test_opposite_certainties_are_ln_2_apart() -> None:
    evidence = make_evidence([[[1e4, -1e4]], [[-1e4, 1e4]]])
    assert rules.divergence("jsd").readiness(evidence)[1].item() == pytest.approx(-math.log(2))


def test_votes_tie_for_the_current_class_if_it_leads_and_else_for_the_likeliest_leader() -> None:
    def one(stage_choices: list[list[float]]) -> list[int]:
        evidence = make_evidence(torch.tensor(stage_choices)[:, None])
        return rules.vote().answers(evidence)[:, 0].argmax(dim=-1).tolist()

    first, second, third = [5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]
    assert one([first, second]) == [0, 1]
    assert one([second, first, second, first]) == [1, 0, 1, 0]
    assert one([first, first, second, second, [0.0, 1.0, 5.0]]) == [0, 0, 0, 1, 1]
    assert one([first, first, second, second, [1.0, 0.0, 5.0]])[-1] == 0
    assert one([third, third, first, first, first]) == [2, 2, 2, 0, 0]


@few
@given(classes=st.integers(2, 4), **shapes)
def test_a_vote_answers_with_a_class_that_has_the_most_votes(
    seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    answers = rules.vote().answers(evidence).argmax(dim=-1)
    for stage in range(stages):
        for sample in range(samples):
            history = evidence.logits[: stage + 1, sample].double().tolist()
            votes = votes_of(history)
            leaders = [name for name in range(classes) if votes[name] == max(votes)]
            assert answers[stage, sample] in leaders
            if answer_of(history[-1]) in leaders:
                assert answers[stage, sample] == answer_of(history[-1])


@pytest.mark.parametrize("weight", [0.0, 1e-12, 1.0, 1e12, 1e300])
def test_the_harmonic_mean_has_no_nan_whatever_the_doubts(weight: float) -> None:
    doubts = torch.tensor([0.0, 1e-16, 1e-9, 0.5, 1.0], dtype=torch.float64)
    a, b = doubts.repeat_interleave(5), doubts.repeat(5)
    rule = rules.harmonic(constant("a", 1 - a), constant("b", 1 - b), weight)
    readiness = rule.readiness(make_evidence(torch.zeros(1, 25, 2)))[0]
    assert not readiness.isnan().any()
    assert ((readiness >= 0) & (readiness <= 1)).all()
    assert readiness[0] == 1


def test_weight_0_leaves_the_second_rule_alone_and_a_huge_one_the_first() -> None:
    a = torch.tensor([0.0, 0.2, 0.9, 1.0, 0.5], dtype=torch.float64)
    b = torch.tensor([0.5, 0.3, 0.1, 0.6, 1.0], dtype=torch.float64)
    evidence = make_evidence(torch.zeros(1, 5, 2))
    none = rules.harmonic(constant("a", a), constant("b", b), 0.0).readiness(evidence)[0]
    huge = rules.harmonic(constant("a", a), constant("b", b), 1e15).readiness(evidence)[0]
    torch.testing.assert_close(none[:4], b[:4])
    torch.testing.assert_close(huge[:4], a[:4])
    # a doubts nothing in the fifth place of b; with weight 0 that must not count
    swapped = rules.harmonic(constant("b", b), constant("a", a), 0.0).readiness(evidence)[0]
    torch.testing.assert_close(swapped, a)


def test_the_harmonic_mean_is_that_of_de3_bert() -> None:
    entropy, ratio, weight = 0.3, 0.4, 2.0
    rule = rules.harmonic(
        constant("distance ratio", torch.tensor([1 - ratio]).double()),
        constant("entropy", torch.tensor([1 - entropy]).double()),
        weight,
    )
    readiness = rule.readiness(make_evidence(torch.zeros(1, 1, 2))).item()
    assert 1 - readiness == pytest.approx((weight + 1) / (weight / ratio + 1 / entropy))


def test_a_rule_that_has_not_heard_enough_is_in_full_doubt_beside_another() -> None:
    evidence = random_evidence(0, 3, 20, 2)
    first = rules.harmonic(rules.confidence(), rules.sustained(rules.entropy(), 2)).readiness(evidence)[0]
    doubt = 1 - rules.confidence().readiness(evidence)[0]
    torch.testing.assert_close(1 - first, 2 / (1 / doubt + 1))


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_that_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="weight must be"):
        rules.harmonic(rules.entropy(), rules.confidence(), weight)


@pytest.mark.parametrize("rule", [rules.patience(), rules.divergence(), rules.vote()], ids=lambda rule: rule.name)
def test_the_harmonic_mean_takes_only_rules_between_0_and_1(rule: rules.Rule) -> None:
    with pytest.raises(InputError, match=rf"harmonic\(\) needs.*{rule.name.split('(')[0]}"):
        rules.harmonic(rules.entropy(), rule)


def test_random_readiness_is_uniform_at_every_stage_and_independent_between_stages_and_seeds() -> None:
    evidence = make_evidence(torch.zeros(12, 4000, 2))
    readiness = rules.random(0).readiness(evidence)
    for row in readiness:
        assert kstest(row.numpy(), "uniform").pvalue > 1e-4
    others = torch.cat([readiness, rules.random(1).readiness(evidence)])
    correlations = torch.corrcoef(others) - torch.eye(24, dtype=torch.float64)
    assert correlations.abs().max() < 0.08


def test_random_readiness_is_a_function_of_seed_id_and_stage_alone() -> None:
    ids = torch.tensor([5, 900_000_001, 17, 3])
    one = make_evidence(torch.randn(4, 4, 2), ids=ids)
    other = make_evidence(torch.randn(4, 2, 3), ids=ids[[2, 0]])
    assert torch.equal(rules.random(3).readiness(one)[:, [2, 0]], rules.random(3).readiness(other))
    assert not torch.equal(rules.random(3).readiness(one), rules.random(4).readiness(one))


def test_threshold_k_of_the_fixed_rule_sends_everybody_to_stage_k_or_to_the_last_there_is() -> None:
    evidence = random_evidence(0, 4, 6, 2)
    for stage in (1, 3, 4, 9):
        assert decide(evidence, rules.fixed(), stage).stages.tolist() == [min(stage, 4) - 1] * 6


def test_the_oracle_leaves_at_the_first_stage_that_is_right_and_never_without_labels() -> None:
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    evidence = make_evidence(
        torch.tensor([[wrong, right, wrong], [right, wrong, wrong], [right, right, wrong]]), [1, 1, 1]
    )
    assert decide(evidence, rules.oracle(), 1).stages.tolist() == [1, 0, 2]
    with pytest.raises(InputError, match="needs labels"):
        decide(replace(evidence, labels=None), rules.oracle(), 1)


def test_a_policy_without_its_extra_says_where_to_get_it() -> None:
    with pytest.raises(InputError, match="extra 'policy'"):
        decide(make_evidence(torch.zeros(2, 2, 2)), rules.policy(), 0.5)


@few
@given(classes=st.integers(2, 4), **shapes)
def test_the_distance_ratio_compares_the_predicted_class_with_the_nearest_other(
    seed: int, stages: int, samples: int, classes: int, scale: float, step: float | None
) -> None:
    evidence = random_evidence(seed, stages, samples, classes, scale, step)
    readiness = rules.distance_ratio().readiness(evidence)
    for stage in range(stages):
        for sample in range(samples):
            distances = evidence.extras["distances"][stage, sample].tolist()
            r1 = distances.pop(answer_of(evidence.logits[stage, sample].tolist()))
            r2 = min(distances)
            ratio = 0.5 if r1 == r2 == 0 else (1 + (r1 - r2) / max(r1, r2)) / 2
            assert readiness[stage, sample].item() == pytest.approx(1 - ratio)


def test_the_distance_ratio_by_hand_on_both_branches_and_where_a_sample_sits_on_a_prototype() -> None:
    # The classifier says class 0 each time; r1 and r2 are the two distances.
    distances = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [0.0, 3.0], [3.0, 0.0], [0.0, 0.0]])
    evidence = make_evidence(torch.tensor([1.0, 0.0]).expand(1, 6, 2), distances=distances[None])
    ratio = 1 - rules.distance_ratio().readiness(evidence)[0]
    # r1 < r2 gives r1 / 2 r2, r1 > r2 gives 1 - r2 / 2 r1.
    assert ratio.tolist() == [0.25, 0.75, 0.5, 0.0, 1.0, 0.5]
    scaled = replace(evidence, extras={"distances": 1000 * distances[None]})
    torch.testing.assert_close(1 - rules.distance_ratio().readiness(scaled)[0], ratio)


def test_a_distance_ratio_without_distances_says_where_to_get_them() -> None:
    with pytest.raises(InputError, match="extra 'distances'; record it from a DE3-BERT model"):
        decide(make_evidence(torch.zeros(2, 2, 2)), rules.distance_ratio(), 0.5)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        (rules.entropy(), 1.1),
        (rules.entropy(), -0.1),
        (rules.confidence(), math.nan),
        (rules.patience(), 0),
        (rules.divergence(), 0.1),
        (rules.vote(), 0),
        (rules.fixed(), 0),
        (rules.margin(), -math.inf),
    ],
)
def test_a_threshold_out_of_range_is_refused_with_the_range(rule: rules.Rule, threshold: float) -> None:
    evidence = random_evidence(0, 3, 4, 2)
    with pytest.raises(InputError, match=r"outside the range of rule .*\["):
        decide(evidence, rule, threshold)


@pytest.mark.parametrize("rule", ALL.values(), ids=list(ALL))
def test_never_keeps_everybody_to_the_last_stage(rule: rules.Rule) -> None:
    evidence = random_evidence(1, 5, 20, 3, scale=1e4)
    assert decide(evidence, rule, rules.NEVER).stages.tolist() == [4] * 20


def test_deebert_s_threshold_on_the_entropy_is_the_same_decision() -> None:
    evidence = random_evidence(2, 6, 200, 3)
    for threshold in (0.0, 0.05, 0.3, 0.7, math.log(3)):
        entropies = evidence.entropy * math.log(3)
        below = (entropies <= threshold + 1e-12).double()
        below[-1] = 1
        decided = decide(evidence, rules.entropy(), rules.from_entropy(threshold, 3)).stages
        assert torch.equal(decided, below.argmax(dim=0))
    with pytest.raises(InputError, match=r"lies in \[0, 1.0986\]"):
        rules.from_entropy(1.2, 3)


def test_unknown_names_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"unknown divergence 'jdd' \(did you mean 'jsd'\?\)"):
        rules.divergence("jdd")
    with pytest.raises(InputError, match="unknown comparison 'first'"):
        rules.divergence("jsd", "first")
    with pytest.raises(InputError, match="1 stage or more"):
        rules.sustained(rules.entropy(), 0)


def constant(name: str, readiness: torch.Tensor) -> rules.Rule:
    """A rule that says the same of every evidence with one stage."""
    return rules.Rule(name, lambda evidence: readiness[None])
