"""Evidence: shapes, parts of it, and the file it is kept in."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import entropy

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence, Later, as_stages, concatenate, predict
from eeutils.exiting.tradeoff import fixed_exits
from tests.helpers import accuracy, make_evidence, random_evidence


def equal(one: Evidence, two: Evidence) -> None:
    for name in ("logits", "ids", "labels", "groups"):
        mine, other = getattr(one, name), getattr(two, name)
        assert mine is other if mine is None else torch.equal(mine, other), name
    for kind in ("cost", "reference", "extras"):
        mine, other = getattr(one, kind), getattr(two, kind)
        assert mine.keys() == other.keys(), kind
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items()), kind
    assert (one.layers, one.reference_layers, one.first) == (two.layers, two.reference_layers, two.first)


def tokens() -> Evidence:
    """Units that belong together, of later stages only, that do not cost alike."""
    sequences = replace(random_evidence(2, 5, 6, 3), groups=torch.tensor([4, 4, 9, 9, 9, 7])).upto(4, 2)
    return replace(sequences, cost={"layers": torch.rand(2, 6), "flops": 1e9 * torch.rand(2, 6)})


@pytest.mark.parametrize(
    "evidence",
    [
        random_evidence(0, 4, 7, 3),
        make_evidence(torch.randn(2, 3, 1)),
        tokens(),
        Evidence.from_logits(torch.ones(2, 1, 2)),
    ],
    ids=["full", "bare", "tokens", "one unit"],
)
def test_what_is_saved_is_loaded(tmp_path: Path, evidence: Evidence) -> None:
    evidence.save(tmp_path / "evidence.safetensors")
    equal(Evidence.load(tmp_path / "evidence.safetensors"), evidence)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_no_evidence_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "evidence.safetensors"
    with pytest.raises(InputError, match="not readable evidence"):
        Evidence.load(path)
    random_evidence(0, 4, 7, 3).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], b"label,text\n"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"evidence.safetensors is not readable evidence .*; delete it"):
            Evidence.load(path)


def test_what_an_older_version_wrote_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "evidence.safetensors"
    about = {"version": "1", "layers": [1, 2], "reference_layers": 2}
    plain = {"logits": torch.zeros(2, 3, 2), "cost": torch.ones(2, 3), "ids": torch.arange(3)}
    save_file(plain, path, {"evidence": json.dumps(about)})
    with pytest.raises(InputError, match=r"evidence.safetensors was written by another version; delete it and record"):
        Evidence.load(path)


def test_another_safetensors_file_is_no_evidence(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not readable evidence"):
        Evidence.load(tmp_path / "model.safetensors")


def test_some_stages_and_some_samples_are_what_they_were() -> None:
    evidence = random_evidence(1, 5, 8, 2)
    first = evidence.upto(1)
    assert (first.stages, first.samples, first.layers) == (2, 8, (1, 2))
    assert torch.equal(first.logits, evidence.logits[:2])
    assert torch.equal(first.extras["policy"], evidence.extras["policy"][:2])
    equal(evidence.upto(4), evidence)
    rows = torch.tensor([6, 2, 3])
    some = evidence.take(rows)
    assert torch.equal(some.logits, evidence.logits[:, rows])
    assert torch.equal(some.ids, evidence.ids[rows])
    assert torch.equal(some.labels, evidence.labels[rows])
    mask = torch.zeros(8, dtype=torch.bool)
    mask[[2, 3, 6]] = True
    equal(evidence.take(mask), evidence.take(torch.tensor([2, 3, 6])))


def test_the_last_stages_alone_still_know_their_numbers() -> None:
    evidence = random_evidence(1, 5, 8, 2)
    held = evidence.upto(3, 2)
    assert (held.stages, held.first, held.layers) == (2, 2, (3, 4))
    assert torch.equal(held.logits, evidence.logits[2:4])
    assert torch.equal(held.cost["flops"], evidence.cost["flops"][2:4])
    assert torch.equal(held.extras["distances"], evidence.extras["distances"][2:4])
    equal(evidence.upto(0, 2), evidence.upto(0))
    # Of what is held, the last one again: numbers go on from the first stage there ever was.
    assert held.upto(1, 1).first == 3


def test_signals_by_hand_and_by_scipy() -> None:
    evidence = make_evidence(torch.tensor([[[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]]).log())
    assert evidence.confidence[0].tolist() == pytest.approx([0.7, 1 / 3])
    assert evidence.margin[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-7)
    assert evidence.entropy[0].tolist() == pytest.approx([entropy([0.7, 0.2, 0.1]) / math.log(3), 1.0])
    assert (evidence.classes, evidence.samples, evidence.stages) == (3, 2, 1)


def test_answers_are_classes_or_numbers() -> None:
    classes = make_evidence([[[0.0, 2.0, 1.0]]])
    number = make_evidence([[[-0.25]]])
    assert (classes.regression, number.regression) == (False, True)
    assert classes.predictions.tolist() == [[1]]
    assert number.predictions.tolist() == [[-0.25]]
    assert predict(torch.tensor([[3.0, 1.0]])).tolist() == [0]


def test_log_probabilities_do_not_tie_when_everybody_is_sure() -> None:
    evidence = make_evidence([[[0.0, 30.0], [0.0, 31.0]]])
    sure = evidence.log_probabilities[0, :, 1]
    assert sure[0] < sure[1] < 0


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    logits = torch.zeros(2, 3, 2)
    with pytest.raises(InputError, match="2 stages needs 2 entries in layers, got 3"):
        make_evidence(logits, layers=(1, 2, 3), cost=torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"extra 'policy' must be \(2, 3, ...\), got \(3, 2\)"):
        make_evidence(logits, policy=torch.zeros(3, 2))
    with pytest.raises(InputError, match=r"labels must be \(3,\), got \(2,\)"):
        make_evidence(logits, [0, 1])
    with pytest.raises(InputError, match=r"groups must be \(3,\), got \(4,\)"):
        make_evidence(logits, groups=[0, 0, 1, 1])
    with pytest.raises(InputError, match=r"cost 'flops' must be \(2, 3\), got \(3, 3\)"):
        make_evidence(logits, cost=torch.zeros(3, 3))


def test_costs_are_of_both_kinds_in_evidence_and_reference() -> None:
    evidence = random_evidence(0, 2, 3, 2)
    with pytest.raises(InputError, match=r"evidence needs cost in layers and flops; got it in \['flops'\]"):
        replace(evidence, cost={"flops": evidence.cost["flops"]})
    with pytest.raises(InputError, match=r"needs reference in layers and flops; got it in \['seconds'\]"):
        replace(evidence, reference={"seconds": torch.ones(3)})


def test_costs_that_are_counted_later_are_counted_once_and_only_when_they_are_looked_at() -> None:
    evidence, counts = random_evidence(0, 2, 3, 2), []
    later = replace(evidence, cost=Later(lambda: counts.append(1) or evidence.cost))
    assert later.confidence.shape == (2, 3)
    assert not counts
    equal(later.take(torch.tensor([2, 0])), evidence.take(torch.tensor([2, 0])))
    assert torch.equal(later.cost["layers"], evidence.cost["layers"])
    assert counts == [1]


def test_parts_are_put_in_the_order_of_the_ids() -> None:
    whole = replace(random_evidence(3, 3, 9, 2), groups=torch.arange(9) // 2)
    rows = torch.tensor([4, 0, 8, 2, 6, 1, 3, 5, 7])
    parts = [whole.take(rows[:4]), whole.take(rows[4:])]
    again = concatenate(parts, whole.ids)
    equal(again, whole)
    with pytest.raises(InputError, match="cannot be put in the order"):
        concatenate(parts[:1], whole.ids)


def one_pass(flops: float, layer: int, answer: float) -> Evidence:
    """A pass under a schedule of its own: one stage, two units."""
    logits = torch.tensor([[[0.0, answer], [answer, 0.0]]])
    evidence = make_evidence(logits, [1, 0], layers=(layer,), reference_layers=6, mark=torch.full((1, 2), answer))
    return replace(evidence, cost={"layers": torch.full((1, 2), layer / 2), "flops": torch.full((1, 2), flops)})


def test_passes_under_several_schedules_are_stages_the_cheapest_first() -> None:
    dear, cheap, middle = one_pass(90.0, 6, 3.0), one_pass(10.0, 1, 1.0), one_pass(50.0, 4, 2.0)
    curve = as_stages([dear, cheap, middle])
    assert curve.layers == (1, 4, 6)
    assert curve.logits[:, 0, 1].tolist() == [1, 2, 3]
    assert curve.cost["flops"][:, 0].tolist() == [10, 50, 90]
    assert curve.cost["layers"][:, 1].tolist() == [0.5, 2, 3]
    assert curve.extras["mark"][:, 0].tolist() == [1, 2, 3]
    assert curve.reference_layers == 6


def test_passes_over_other_samples_or_of_several_stages_are_no_curve() -> None:
    one = one_pass(10.0, 1, 1.0)
    for parts in ([], [one, replace(one, ids=one.ids + 1)], [one, random_evidence(0, 2, 2, 2)]):
        with pytest.raises(InputError, match="each of them has answered the same samples once"):
            as_stages(parts)


def test_evidence_of_logits_alone_counts_a_stage_as_a_layer() -> None:
    evidence = Evidence.from_logits(torch.zeros(4, 3, 2), torch.tensor([0, 1, 1]))
    curve = fixed_exits(evidence, accuracy)
    assert curve.layers.tolist() == [1, 2, 3, 4]
    assert curve.flops_speedup.tolist() == pytest.approx([4, 2, 4 / 3, 1])
