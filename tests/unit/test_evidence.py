"""Evidence: shapes, parts of it, and the file it is kept in."""

from pathlib import Path

import pytest
import torch

from eeutils.errors import InputError
from eeutils.evidence import Evidence, concatenate, predict
from eeutils.tradeoff import fixed_exits
from tests.helpers import accuracy, make_evidence, random_evidence


def equal(one: Evidence, two: Evidence) -> None:
    for name in ("logits", "ids", "cost", "reference_cost", "layers_run"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert (one.layers, one.reference_layers) == (two.layers, two.reference_layers)
    assert (one.labels is None) == (two.labels is None)
    assert one.labels is None or torch.equal(one.labels, two.labels)
    assert one.extras.keys() == two.extras.keys()
    assert all(torch.equal(tensor, two.extras[name]) for name, tensor in one.extras.items())


@pytest.mark.parametrize(
    "evidence", [random_evidence(0, 4, 7, 3), make_evidence(torch.randn(2, 3, 1))], ids=["full", "bare"]
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


def test_another_safetensors_file_is_no_evidence(tmp_path: Path) -> None:
    from safetensors.torch import save_file

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
    some = evidence.select(rows)
    assert torch.equal(some.logits, evidence.logits[:, rows])
    assert torch.equal(some.ids, evidence.ids[rows])
    assert torch.equal(some.labels, evidence.labels[rows])
    mask = torch.zeros(8, dtype=torch.bool)
    mask[[2, 3, 6]] = True
    equal(evidence.select(mask), evidence.select(torch.tensor([2, 3, 6])))


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


def test_parts_are_put_in_the_order_of_the_ids() -> None:
    whole = random_evidence(3, 3, 9, 2)
    rows = torch.tensor([4, 0, 8, 2, 6, 1, 3, 5, 7])
    parts = [whole.select(rows[:4]), whole.select(rows[4:])]
    again = concatenate(parts, whole.ids)
    equal(again, whole)
    with pytest.raises(InputError, match="cannot be put in the order"):
        concatenate(parts[:1], whole.ids)


def test_evidence_of_logits_alone_counts_a_stage_as_a_layer() -> None:
    evidence = Evidence.from_logits(torch.zeros(4, 3, 2), torch.tensor([0, 1, 1]))
    found = fixed_exits(evidence, accuracy)
    assert found.layers.tolist() == [1, 2, 3, 4]
    assert found.flops_speedup.tolist() == pytest.approx([4, 2, 4 / 3, 1])
