"""The best learned rule: causal, honest, equal to the oracle where a signal decides, no better than blind on noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeutils.errors import InputError
from eeutils.exiting import learned, rules, tradeoff
from eeutils.exiting.comparisons import over_blind
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.learned import Learned, learn, learned_on_test, learned_rule, share_of_gain
from eeutils.exiting.signals import signals
from tests.helpers import accuracy, make_evidence, negative_error, random_evidence

few = settings(max_examples=5)  # each example learns rules, ten ridges each

shapes = {"seed": st.integers(0, 2**32 - 1), "stages": st.integers(2, 4), "classes": st.integers(1, 3)}


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees take most of the time, and what is tested here holds whoever judges."""
    both = learned._judges
    monkeypatch.setattr(learned, "_judges", lambda *which: dict(list(both(*which).items())[:1]))


def exits(seed: int, samples: int, stages: int = 4, first_id: int = 0, sharpness: float = 1.0) -> Evidence:
    """Exits of two classes that hear the label in noise, the deeper the better."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (samples,), generator=generator)
    heard = torch.randn(stages, samples, generator=generator).cumsum(dim=0)
    depth = torch.arange(1, stages + 1)[:, None]
    toward = sharpness * (depth * (2 * labels - 1) + 1.5 * heard)
    return make_evidence(torch.stack([-toward, toward], dim=-1) / 2, labels, ids=range(first_id, first_id + samples))


def with_hint(evidence: Evidence) -> Evidence:
    """The same exits, which also say whether they are right."""
    return replace(evidence, extras={"hint": (evidence.predictions == evidence.labels).double()})


def noise(seed: int, samples: int, first_id: int = 0) -> Evidence:
    """Exits that know nothing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (samples,), generator=generator)
    return make_evidence(
        2 * torch.randn(4, samples, 2, generator=generator), labels, ids=range(first_id, first_id + samples)
    )


@few
@given(stage=st.integers(0, 4), **shapes)
def test_it_is_causal_and_says_the_same_of_what_was_heard_so_far(
    seed: int, stages: int, classes: int, stage: int
) -> None:
    rule = learned_rule(random_evidence(seed, stages, 24, classes))
    evidence, other = (random_evidence(seed + number, stages, 30, classes) for number in (1, 2))
    stage = min(stage, stages - 1)
    end = stage + 1
    changed = replace(
        evidence,
        logits=torch.cat([evidence.logits[:end], other.logits[end:]]),
        cost={kind: torch.cat([spent[:end], 3 * spent[end:]]) for kind, spent in evidence.cost.items()},
        labels=other.labels,
        extras={name: torch.cat([extra[:end], other.extras[name][end:]]) for name, extra in evidence.extras.items()},
    )
    whole = rule.readiness(evidence)
    torch.testing.assert_close(rule.readiness(changed)[:end], whole[:end], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(rule.readiness(evidence.upto(stage)), whole[:end], atol=1e-9, rtol=1e-9)
    assert not torch.allclose(rule.readiness(evidence)[0], rule.readiness(other)[0])


@few
@given(**shapes)
def test_neither_the_order_of_dev_nor_that_of_the_samples_counts(seed: int, stages: int, classes: int) -> None:
    dev, evidence = random_evidence(seed, stages, 24, classes), random_evidence(seed + 1, stages, 30, classes)
    shuffled, some = (torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for count in (24, 30))
    rule, same = learned_rule(dev), learned_rule(dev.take(shuffled))
    readiness = rule.readiness(evidence)
    torch.testing.assert_close(same.readiness(evidence), readiness, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(same.readiness(dev), rule.readiness(dev), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(rule.readiness(evidence.take(some[:7])), readiness[:, some[:7]], atol=1e-9, rtol=1e-9)
    assert readiness.isfinite().all()
    assert (readiness[-1] == 0).all()


def test_it_is_a_function_of_dev_and_seed() -> None:
    dev, evidence = exits(0, 100), exits(1, 50, first_id=1000)
    one, two, other = (learned_rule(dev, seed=seed).readiness(evidence) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_dev_sample_is_judged_by_a_rule_that_has_not_seen_its_label() -> None:
    dev = exits(0, 60)
    rule = learned_rule(dev)
    before = rule.readiness(dev)
    for sample in (0, 17, 42):
        labels = dev.labels.clone()
        labels[sample] = 1 - labels[sample]
        after = learned_rule(replace(dev, labels=labels)).readiness(dev)
        torch.testing.assert_close(after[:, sample], before[:, sample], atol=1e-12, rtol=1e-12)
        assert not torch.allclose(after, before)


def test_groups_are_left_out_whole() -> None:
    dev = replace(exits(0, 60), groups=torch.arange(60) // 3)
    labels = dev.labels.clone()
    labels[30] = 1 - labels[30]
    before, after = (learned_rule(each).readiness(dev)[:, 30:33] for each in (dev, replace(dev, labels=labels)))
    torch.testing.assert_close(after, before, atol=1e-12, rtol=1e-12)


def test_another_sample_under_the_id_of_a_dev_sample_is_no_dev_sample() -> None:
    # A runtime numbers the texts that it is given from 0.
    dev, texts = exits(0, 60), exits(1, 60)
    assert torch.equal(dev.ids, texts.ids)
    rule = learned_rule(dev)
    elsewhere = replace(texts, ids=texts.ids + 1000)
    torch.testing.assert_close(rule.readiness(texts), rule.readiness(elsewhere))
    moved = replace(dev, ids=dev.ids + 1000)
    assert not torch.allclose(rule.readiness(dev), rule.readiness(moved))


def test_where_one_signal_decides_it_reaches_the_oracle() -> None:
    dev, test = with_hint(exits(0, 200)), with_hint(exits(1, 600, first_id=1000))
    best = tradeoff.sweep(test, rules.oracle(), accuracy).iloc[0]
    rule = learned_rule(dev)
    curve = tradeoff.sweep(test, rule, accuracy)
    assert tradeoff.score_at(curve, best.flops_speedup) >= best.score - 0.005
    # The entropy of the same exits does not.
    entropy = tradeoff.sweep(test, rules.entropy(), accuracy)
    assert tradeoff.score_at(entropy, best.flops_speedup) < best.score - 0.05
    # Nor is it the label that is read: it leaves at the first exit that says that it is right.
    left = tradeoff.decide(test, rule, tradeoff.threshold_for_speedup(dev, rule, best.flops_speedup)).stages
    wanted = tradeoff.decide(test, rules.oracle(), 1.0).stages
    assert (left == wanted).double().mean() > 0.95


def test_a_signal_of_an_earlier_exit_is_read_too() -> None:
    # Exit 1 tells whether exit 2 will be right; nothing else does.
    generator = torch.Generator().manual_seed(3)

    def told(samples: int, first_id: int) -> Evidence:
        labels = torch.randint(2, (samples,), generator=generator)
        right = torch.stack(
            [torch.zeros(samples), torch.rand(samples, generator=generator) < 0.5, torch.ones(samples)]
        ).bool()
        sides = torch.where(right, labels, 1 - labels)
        logits = torch.nn.functional.one_hot(sides, 2).double()
        hint = torch.stack([right[1].double(), torch.zeros(samples), torch.zeros(samples)])
        return make_evidence(logits, labels, ids=range(first_id, first_id + samples), hint=hint)

    dev, test = told(200, 0), told(400, 1000)
    curve = tradeoff.sweep(test, learned_rule(dev), accuracy)
    # Half leave at exit 2 and half at exit 3, and all are right.
    assert curve[curve.layers <= 2.6].score.max() >= 0.99


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_on_noise_it_gains_nothing_beyond_chance(seed: int) -> None:
    dev, test = noise(seed, 100), noise(seed + 1, 500, first_id=1000)
    gain = over_blind((test, learned_rule(dev)), [[(dev, test)]], 1.5, accuracy, resamples=100)
    # One interval in forty lies above 0 by chance: four standard errors do not.
    assert gain.low - (gain.high - gain.low) / 2 < 0


def test_it_is_no_worse_than_entropy_where_entropy_is_all_there_is_to_know() -> None:
    gaps = []
    for seed in range(3):
        dev, test = exits(seed, 200), exits(100 + seed, 2000, first_id=1000)
        curves = [tradeoff.sweep(test, rule, accuracy) for rule in (learned_rule(dev), rules.entropy())]
        gaps += [tradeoff.score_at(curves[0], wanted) - tradeoff.score_at(curves[1], wanted) for wanted in (1.5, 2.0)]
    assert np.mean(gaps) > -0.004


def test_numbers_are_judged_by_their_squared_error() -> None:
    # Half of the samples are settled at the first exit, which shows in the size of the step that follows.
    generator = torch.Generator().manual_seed(0)

    def numbers(samples: int, first_id: int) -> Evidence:
        labels = torch.randn(samples, generator=generator)
        easy = torch.rand(samples, generator=generator) < 0.5
        errors = torch.stack([(~easy) * scale * torch.randn(samples, generator=generator) for scale in (3, 2, 0.1, 0)])
        sure = easy.double().expand(4, -1)
        ids = range(first_id, first_id + samples)
        return make_evidence((labels + errors)[..., None], labels, ids=ids, sure=sure)

    dev, test = numbers(200, 0), numbers(500, 1000)
    rule = learned_rule(dev)
    assert rule.regression
    curves = [tradeoff.sweep(test, each, negative_error) for each in (rule, rules.divergence(), rules.fixed())]
    ours, *others = (tradeoff.score_at(curve, 1.6) for curve in curves)
    assert ours > max(others) + 0.15


def test_numbers_are_compared_on_the_line_that_suits_the_last_exit() -> None:
    # A correlation does not see that all exits speak on another scale than labels; it sees one that differs.
    dev = random_evidence(0, 3, 30, 1)
    moved = replace(dev, logits=3 * dev.logits - 7)
    likely = dev.labels.double().numpy()
    assert np.allclose(learned._worth(moved, likely), learned._worth(dev, likely), atol=1e-5)
    logits = torch.stack([0.1 * dev.labels, dev.labels])[..., None]
    worth = learned._worth(make_evidence(logits, dev.labels), likely)
    assert np.allclose(worth[1], 0, atol=1e-9)
    assert worth[0].mean() == pytest.approx(-0.81 * 29 / 30, abs=0.2)


def test_the_critical_price_of_a_coin_by_hand() -> None:
    # Exit 1 is right on half of the samples whatever it says, exit 2 on all: going on pays 1/2, and costs one of two
    # layers, half of a plain pass (10 of 21 FLOPs and a head). So the critical price is close to 1, less what a judge
    # doubts who is asked about samples that he has not seen.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (400,), generator=generator)
    first, last = torch.randn(400, 2, generator=generator), 9.0 * torch.nn.functional.one_hot(labels, 2)
    dev = make_evidence(torch.stack([first, last]), labels)
    assert learned_rule(dev).readiness(dev)[0].mean().item() == pytest.approx(-0.5 / (11 / 21), abs=0.2)


def test_prices_fall_through_zero_between_two_or_lie_beyond_in_order() -> None:
    prices = np.array([0.0, 1.0, 2.0])
    pays = np.array(
        [[1.0, -1.0, 3.0, 3.0, 1.0, -2.0], [-1.0, -2.0, 2.0, 2.0, 0.5, -2.5], [-2.0, -3.0, 1.0, 2.0, 2.0, -3]]
    )
    assert learned._critical(pays, prices).tolist() == [0.5, -1.0, 3.0, 4.0, 2.5, -2.0]


def test_the_later_exits_are_left_as_the_price_says_and_not_at_the_end() -> None:
    # Exit 2 repairs all that can be repaired; exits 3 and 4 add cost alone. Whoever compares with the last exit only
    # thinks that going on costs three layers.
    labels = torch.arange(400) % 2
    repaired = torch.nn.functional.one_hot(labels, 2).double() * 6
    first = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    dev = make_evidence(torch.stack([first, repaired, repaired, repaired]), labels)
    price = -learned_rule(dev).readiness(dev)[0].mean().item()
    assert price == pytest.approx(0.5 / (11 / 41), abs=0.25)


def test_signals_by_hand() -> None:
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]], dtype=torch.float64)[:, None]
    evidence = make_evidence(p.log(), [1], policy=torch.tensor([[0.2], [0.4], [0.9]]))
    found = {name: values[:, 0].tolist() for name, values in signals(evidence).items()}
    odds = [math.log(0.2 / 0.8), math.log(0.6 / 0.4), math.log(9)]
    assert found["log-odds"] == pytest.approx([math.log(4), odds[1], odds[2]], abs=1e-6)
    assert found["log-odds before"] == pytest.approx([math.log(4), odds[0], odds[1]], abs=1e-6)
    assert found["log-odds, mean so far"][2] == pytest.approx(sum(odds) / 3, abs=1e-6)
    assert found["log-odds, least so far"] == pytest.approx([math.log(4), odds[0], odds[0]], abs=1e-6)
    assert found["agreeing exits"] == [1, 0, 0.5]
    assert found["agreeing in a row"] == pytest.approx([0, 0, math.log(2)])
    assert found["divergence"][0] == pytest.approx(0, abs=1e-9)
    assert found["divergence, largest so far"][2] > found["divergence"][2] > 0
    assert found["policy"] == pytest.approx([0.2, 0.4, 0.9])
    assert found["policy, mean so far"] == pytest.approx([0.2, 0.3, 0.5])


@few
@given(**shapes)
def test_the_names_of_classes_do_not_matter(seed: int, stages: int, classes: int) -> None:
    evidence = random_evidence(seed, stages, 20, max(classes, 2))
    order = torch.randperm(max(classes, 2), generator=torch.Generator().manual_seed(seed))
    extras = evidence.extras | {"distances": evidence.extras["distances"][..., order]}
    renamed = replace(evidence, logits=evidence.logits[..., order], extras=extras)
    for name, values in signals(evidence).items():
        torch.testing.assert_close(signals(renamed)[name], values, msg=name)


def test_signals_stay_finite_on_confident_logits() -> None:
    evidence = make_evidence(torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]], [[0.0, 0.0]]]), [0])
    assert all(values.isfinite().all() for values in signals(evidence).values())


def test_what_it_reads_is_what_decides() -> None:
    table = learn(with_hint(noise(0, 200))).reads(with_hint(noise(1, 200, first_id=1000)))
    assert list(table.columns) == [1, 2, 3]
    hint = table.loc["hint"] + table.loc["hint, mean so far"]
    assert hint.min() > 0.3
    others = table.drop(index=["hint", "hint, mean so far"])
    assert others.max().max() < hint.min() / 2


def test_signals_that_say_the_same_are_shuffled_together() -> None:
    found, test = learn(with_hint(noise(0, 200))), with_hint(noise(1, 200, first_id=1000))
    every = list(signals(test))
    hints = [name for name in every if name.startswith("hint")]
    table = found.reads(test, {"hint": hints, "the rest": [name for name in every if name not in hints], "none": []})
    assert table.loc["none"].max() < 1e-9
    assert table.loc["hint"].min() > max(0.5, table.loc["the rest"].max())
    assert found.reads(test, {"all": every}).loc["all"].between(0.8, 1).all()


def test_learned_on_test_knows_labels_and_needs_no_luck() -> None:
    test = exits(1, 400)
    rule = learned_on_test(test)
    assert rule.needs_labels
    assert rule.name == learned.ON_TEST
    labels = test.labels.clone()
    labels[5] = 1 - labels[5]
    after = learned_on_test(replace(test, labels=labels))
    # Its own label is never its own judge.
    torch.testing.assert_close(after.readiness(test)[:, 5], rule.readiness(test)[:, 5], atol=1e-12, rtol=1e-12)


def test_what_cannot_be_learned_from_is_refused() -> None:
    dev = exits(0, 40)
    for evidence, sentence in (
        (replace(dev, labels=None), "labelled evidence of 2 stages or more"),
        (dev.upto(0), "labelled evidence of 2 stages or more"),
        (dev.take(torch.arange(9)), "10 samples .* or more"),
        (replace(dev, groups=torch.arange(40) // 8), "10 samples .* or more"),
    ):
        with pytest.raises(InputError, match=sentence):
            learned_rule(evidence)
    with pytest.raises(InputError, match="2 folds or more"):
        learned_rule(dev, folds=1)


def test_evidence_of_another_model_is_refused() -> None:
    rule = learned_rule(with_hint(exits(0, 40)))
    with pytest.raises(InputError, match="4 stages and 2 classes, and the evidence has 5 and 2"):
        rule.readiness(with_hint(exits(0, 5, stages=5)))
    with pytest.raises(InputError, match="signal 'hint'"):
        rule.readiness(exits(0, 5))
    with pytest.raises(InputError, match="begins at 2"):
        rule.readiness(with_hint(exits(0, 5)).upto(2, 2))


def test_one_class_alone_and_few_samples_are_no_trouble() -> None:
    dev = replace(exits(0, 12), labels=torch.zeros(12, dtype=torch.long))
    assert learned_rule(dev).readiness(dev).isfinite().all()


def test_both_judges_are_asked_and_the_better_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert set(learn(exits(0, 300)).judges) == {"logistic"}
    # Right where exit 1 is far out on either side: a line cannot say that, trees can.
    generator = torch.Generator().manual_seed(0)
    far = 3 * torch.randn(300, generator=generator)
    labels = (far.abs() > 2).long()
    logits = torch.stack([far, -far, far * 0], dim=-1)[None, :, :2].expand(2, -1, -1)
    assert set(learn(make_evidence(logits, labels)).judges) == {"boosted trees"}


def share(ours: rules.Rule, test: Evidence, dev: Evidence, speedup: float = 2.0) -> learned.Share | None:
    best = learned_rule(dev)
    return share_of_gain((test, ours), (test, best), [[(dev, test)]], speedup, accuracy, resamples=200)


def test_the_learned_rule_takes_all_of_its_own_gain_and_a_coin_next_to_none() -> None:
    dev, test = exits(0, 200), exits(1, 2000, first_id=1000)
    whole = share(learned_rule(dev), test, dev)
    assert (whole.share.estimate, whole.share.low, whole.share.high) == pytest.approx((1, 1, 1))
    coin, entropy = (share(rule, test, dev) for rule in (rules.random(), rules.entropy()))
    assert coin.share.high < 0.5 < entropy.share.low
    assert coin.gain.estimate == pytest.approx(coin.share.estimate * coin.possible.estimate)


def test_the_interval_of_a_share_is_that_of_a_ratio() -> None:
    dev, test = exits(0, 200), exits(1, 2000, first_id=1000)
    best, labels = learned_rule(dev), test.labels.numpy()
    found = share_of_gain((test, rules.entropy()), (test, best), [[(dev, test)]], 2.0, accuracy)
    readings = [tradeoff.at_speedup(test, rule, 2.0) for rule in (rules.entropy(), best)]
    readings.append(tradeoff.blind_policy([(dev, test)], 2.0, accuracy))

    def ratio(_: int, rows: np.ndarray) -> float:
        ours, learnt, none = (reading.score(accuracy, labels, rows) for reading in readings)
        return (ours - none) / (learnt - none)

    wanted = bootstrap(ratio, len(labels))
    assert found.share.estimate == pytest.approx(wanted.estimate)
    # Both are bootstraps, of other draws and other formulas: the ends of a ratio's interval are known to a tenth of it.
    width = wanted.high - wanted.low
    assert (found.share.low, found.share.high) == pytest.approx((wanted.low, wanted.high), abs=width / 10)


def test_a_share_of_nothing_is_not_defined() -> None:
    dev, test = noise(0, 100), noise(1, 400, first_id=1000)
    found = share(rules.entropy(), test, dev, 1.5)
    assert found.share is None
    assert str(found) == "not defined"
    assert isinstance(found.possible, Interval)


def test_a_speed_up_out_of_reach_has_no_share() -> None:
    dev, test = exits(0, 100), exits(1, 200, first_id=1000)
    assert share(rules.patience(), test, dev, 3.9) is None


def test_shares_over_seeds_are_those_of_the_mean_gains() -> None:
    runs = [(exits(seed, 150), exits(50, 800, first_id=1000, sharpness=1 + seed / 4)) for seed in range(3)]
    best = [(test, learned_rule(dev)) for dev, test in runs]
    ours = [(test, rules.entropy()) for _, test in runs]
    found = share_of_gain(ours, best, [[run] for run in runs], 2.0, accuracy, resamples=100)
    assert found.share.seeds == 3
    assert found.share.estimate == pytest.approx(found.gain.estimate / found.possible.estimate)
    assert found.share.low < found.share.estimate < found.share.high


def test_a_learned_rule_is_kept_by_what_it_was_learned_from() -> None:
    found = learn(exits(0, 50))
    assert isinstance(found, Learned)
    assert found.rule is found.rule
    assert (found.rule.name, found.rule.reads, found.rule.needs_labels) == (learned.NAME, None, False)
