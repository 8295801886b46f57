"""Gates beside what looks at nothing: rates, coins, dropped layers, and who skips what, checked by hand."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eeutils.exiting import rules, tradeoff
from eeutils.exiting.evidence import Evidence
from eeutils.models.record import record
from eeutils.papers import treatments
from eeutils.papers.controls import skipping
from eeutils.papers.smartbert import METHOD
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting
from tests.helpers import accuracy, make_evidence
from tests.integration.test_smartbert import SAMPLES, model_of


def skipping_evidence(*paths: str, answers: list[int] | None = None) -> Evidence:
    """Evidence of samples that skip the layers marked 1; all labels are 1, and so are answers unless given."""
    skipped = torch.tensor([[float(mark) for mark in path] for path in paths]).T
    said = torch.tensor(answers or [1] * len(paths))
    logits = nn.functional.one_hot(said, 2).float().expand(len(skipped), -1, -1)
    return make_evidence(logits, [1] * len(paths), skipped=skipped, gate=skipped)


def run_of(**said: object) -> Run:
    run = Run(Path("nowhere"), METHOD, Setting(), METHOD.options)
    run.__dict__.update(said)
    return run


EVIDENCE = skipping_evidence("0110", "0110", "0011", "0000", "0110", answers=[1, 0, 1, 1, 1])


def test_rates_and_the_most_skipped_layers() -> None:
    assert skipping.skip_rates(EVIDENCE).tolist() == pytest.approx([0.0, 0.6, 0.8, 0.2])
    assert skipping.layers_skipped(EVIDENCE).tolist() == [2, 2, 2, 0, 2]
    assert skipping.most_skipped(skipping.skip_rates(EVIDENCE)) == (2, 3)
    # One at least is dropped and one is left, whatever the gates do.
    assert skipping.most_skipped(torch.tensor([0.0, 0.1, 0.0, 0.0])) == (2,)
    assert skipping.most_skipped(torch.tensor([1.0, 1.0, 0.9, 1.0])) == (1, 2, 4)


def test_paths_are_named_with_their_share_size_and_right_answers() -> None:
    table = skipping.paths(EVIDENCE)
    assert table["skipped layers"].tolist() == ["2, 3", "none", "3, 4"] or table["skipped layers"][0] == "2, 3"
    assert table.share.tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert table.right[0] == pytest.approx(2 / 3)
    assert table["size of a sentence"].tolist() == [1.0] * 3
    assert len(skipping.paths(EVIDENCE, most=1)) == 1


def test_rates_by_group() -> None:
    table = skipping.rates_by(EVIDENCE, {"first two": torch.tensor([1, 1, 0, 0, 0]).bool()})
    assert table.loc["first two"].tolist() == [0, 1, 1, 0]


def test_what_skipping_goes_with() -> None:
    perfect = skipping.goes_with(EVIDENCE, [2, 2, 2, 0, 2])
    assert perfect.estimate == pytest.approx(1.0)
    assert math.isnan(skipping.goes_with(EVIDENCE, [1] * 5).estimate)


def test_steps_between_rates_are_paired_differences() -> None:
    runs = [run_of(test=skipping_evidence(*paths)) for paths in (("00", "01"), ("01", "01"), ("01", "00"))]
    assert [step.estimate for step in skipping.steps_of_rates(runs)] == [0.5, -0.5]


@pytest.mark.parametrize(
    ("paths", "took"),
    [
        (["0110"] * 5 + ["0010"] * 5, True),
        (["0110"] * 10, False),  # the same for all
        (["0000"] * 10, False),  # nothing is skipped
        (["0000"] * 19 + ["1000"], False),
    ],
)
def test_gates_that_tell_no_sentences_apart_have_not_taken(paths: list[str], took: bool) -> None:
    check = treatments.gates(run_of(dev=skipping_evidence(*paths)))
    assert (check.name, check.took) == ("SmartBERT", took)
    share = max(Counter(paths).values()) / len(paths)
    assert f"{share:.0%} skip the commonest set of layers (at most 90%)" in check.found
    if paths == ["0110"] * 5 + ["0010"] * 5:
        assert "gates skip 1.5 of 4 layers (0%, 50%, 100%, 0% of the samples at layers 1 to 4)" in check.found


@pytest.fixture
def run() -> Run:
    """A run of the tiny model that was never trained."""
    model = model_of()
    parts = {"dev": SAMPLES, "test": SAMPLES, "train": SAMPLES}
    run = run_of(model=lambda: model, samples=lambda split: parts[split])
    run.__dict__.update(dev=record(model, SAMPLES), test=record(model, SAMPLES))
    return run


def test_coins_skip_as_often_as_gates_and_the_same_each_time(run: Run) -> None:
    rates = torch.tensor([0.0, 1.0, 0.5, 0.5])
    before = torch.get_rng_state()
    first, again, other = (skipping.record_coins(run, rates, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.extras["skipped"], again.extras["skipped"])
    assert not torch.equal(first.extras["skipped"], other.extras["skipped"])
    assert skipping.skip_rates(first)[:2].tolist() == [0.0, 1.0]
    drawn = torch.stack([skipping.skip_rates(skipping.record_coins(run, rates, seed)) for seed in range(10)])
    assert drawn.mean(dim=0)[2:].tolist() == pytest.approx([0.5, 0.5], abs=0.12)


def test_skipping_alone_is_a_curve_from_few_layers_to_many(run: Run) -> None:
    alone = skipping.skipping_alone(run)
    for evidence in (alone.gates, alone.coins, alone.dropped):
        assert torch.equal(evidence.labels, SAMPLES.labels)
        assert evidence.cost["flops"].mean(dim=1).diff().min() >= 0
        assert len(tradeoff.sweep(evidence, rules.fixed(), accuracy)) >= 3
    assert alone.dropped.cost["layers"].tolist() == [[layers] * len(SAMPLES) for layers in (1, 2, 3, 4)]
    # One of the points is the trained one: gates on, the last exit alone.
    usual = record(run.model().with_gates(list(run.model().gates), only_last_exit=True), SAMPLES)
    assert any(torch.equal(usual.cost["flops"][0], stage) for stage in alone.gates.cost["flops"])
    # Coins pay for no gate, so at the same layers they are cheaper.
    gates_cost = sum(gate.flops(SAMPLES.lengths) for gate in run.model().gates)
    assert (alone.gates.cost["flops"].min(dim=0).values >= gates_cost).all()


def test_dropping_layers_costs_neither_them_nor_gates(run: Run) -> None:
    evidence = record(skipping.dropping(run.model(), (1, 3), only_last_exit=True), SAMPLES)
    head = run.model().exit_at(-1)
    layers = run.test.reference["flops"] - head.plain_flops
    assert torch.equal(evidence.cost["flops"][0], layers / 2 + head.flops(SAMPLES.lengths))


@pytest.mark.usefixtures("tiny_tasks")
def test_exits_are_held_to_probes_on_what_they_read(setting: Setting) -> None:
    run = load_or_train(METHOD, replace(setting, pool="mean"), progress=False, skip_term="price", lamada=0.02)
    gate = skipping.learned(run)
    assert gate.layer.tolist() == [1, 2, 3, 4]
    shown = skipping.exits_as_trained(run)
    assert shown.logits.shape == run.test.logits.shape
    # An exit that answers at random where a probe does not has not learned, and a verdict must not count it.
    table, unfit = skipping.checked({"ours": run})
    assert set(table.columns) == {"steps", "seconds", "exit 1", "exit 2", "exit 3", "exit 4"}
    assert (len(unfit) == 0) == bool(gate.learned.to_numpy()[asked(run)].all())


def asked(run: Run) -> np.ndarray:
    """Exits that somebody reaches."""
    used = skipping.skip_rates(run.dev).numpy() < 1
    used[-1] = True
    return used
