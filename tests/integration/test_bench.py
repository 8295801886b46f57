"""The bench at its quick size: what it compares is what it says, and its table holds together. No speed is asserted."""

import numpy as np
import pandas as pd
import pytest
import torch

from eeutils import bench
from eeutils.evidence import record
from eeutils.rules import entropy
from eeutils.tradeoff import decide, sweep


@pytest.fixture(scope="module")
def quick_table(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "results" / "bench.csv"
    bench.main(["--quick", "--output", str(output)])
    return pd.read_csv(output)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return bench.build("tiny")


def test_the_table_has_the_columns_that_readers_rely_on(quick_table):
    assert tuple(quick_table.columns) == bench.COLUMNS
    assert quick_table.what.is_unique
    assert set(quick_table.unit) == {"x", "%", "MB"}
    environment = quick_table[["commit", "device", "threads", "torch"]]
    assert environment.notna().all(axis=None)
    assert len(environment.drop_duplicates()) == 1


def test_every_measured_value_is_a_number_and_every_ratio_positive(quick_table):
    assert np.isfinite(quick_table.value).all()
    assert (quick_table.value[quick_table.unit == "x"] > 0).all()
    assert (quick_table.value[quick_table.unit == "MB"] >= 0).all()


def test_met_says_whether_the_value_reaches_its_target(quick_table):
    aimed = quick_table[quick_table.target.notna()]
    for row in aimed.itertuples():
        comparison, bar = row.target.split()
        assert row.met == (row.value >= float(bar) if comparison == ">=" else row.value <= float(bar))
    assert quick_table.met[quick_table.target.isna()].isna().all()


@pytest.mark.parametrize(
    ("what", "target"),
    [
        ("training, length buckets against every batch padded to 128", ">= 3.5"),
        ("training, length buckets against random batches", ">= 1.5"),
        ("ConsistentEE, 8 replicas on one pass of the encoder against as many passes", ">= 4"),
        ("sweep of 20 thresholds", ">= 15"),
        ("realised over layer speed-up, batch 1", ">= 0.95"),
        ("realised over layer speed-up, batch 32", ">= 0.85"),
        ("overhead when nobody exits, batch 1", "<= 5"),
        ("overhead when nobody exits, batch 32", "<= 5"),
    ],
)
def test_every_promised_figure_stands_in_the_table_with_its_target(quick_table, what, target):
    assert target in set(quick_table.target[quick_table.what.str.contains(what, regex=False)])


def test_a_table_that_cannot_be_written_leaves_the_old_one_as_it_was(tmp_path, monkeypatch):
    class Unwritable(pd.DataFrame):
        def to_csv(self, path, **_):
            path.write_text("half a table")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench, "measure", lambda quick: Unwritable())
    output = tmp_path / "bench.csv"
    output.write_text("the old table")
    with pytest.raises(OSError, match="the disk is full"):
        bench.main(["--output", str(output)])
    assert output.read_text() == "the old table"
    assert list(tmp_path.iterdir()) == [output]


def test_a_quick_run_does_not_replace_the_committed_table(tmp_path, monkeypatch, quick_table):
    monkeypatch.setattr(bench, "measure", lambda quick: quick_table)
    monkeypatch.setattr(bench, "OUTPUT", tmp_path / "bench.csv")
    bench.main(["--quick"])
    assert list(tmp_path.iterdir()) == []
    bench.main([])
    assert pd.read_csv(tmp_path / "bench.csv").equals(quick_table)


def test_what_is_compared_takes_turns_call_by_call():
    order = []
    tracks = {"a": [lambda: order.append("a1"), lambda: order.append("a2")], "b": [lambda: order.append("b1")]}
    seconds = bench.race(tracks, rounds=2, description="race")
    assert order == ["a1", "b1"] + ["a1", "b1", "a2"] * 2  # the first two warm up
    assert all(track.shape == (2,) and (track > 0).all() for track in seconds.values())


def test_the_plain_model_answers_as_the_last_exit_does(model):
    samples, _ = bench._random_samples()
    batch = samples.batch(range(8))
    with torch.inference_mode():
        expected = model(*batch.inputs).logits[-1]
    assert torch.allclose(bench.plain(model, batch), expected, atol=1e-6)


def test_the_spread_rule_sends_as_many_samples_to_every_stage(model):
    samples, _ = bench._random_samples(40)
    stages = decide(record(model, samples), bench.spread(), 1.0).stages
    assert torch.bincount(stages).tolist() == [10] * model.stages


def test_timed_training_batches_are_as_wide_as_those_of_a_whole_epoch():
    samples, _ = bench._random_samples(32 * 200)
    for way in ("buckets", "dynamic"):
        few, all_of_them = (bench._train_batches(samples, way, count) for count in (12, 200))
        mean_width = [np.mean([batch.input_ids.shape[1] for batch in group]) for group in (few, all_of_them)]
        assert mean_width[0] == pytest.approx(mean_width[1], rel=0.05)
    padded = bench._train_batches(samples, "padded", 3)
    assert {tuple(batch.input_ids.shape) for batch in padded} == {(32, bench.PADDED_TO)}


def test_rerun_thresholds_lie_evenly_along_the_curve(model):
    samples, _ = bench._random_samples(1000)
    evidence = record(model, samples)
    thresholds = bench._spread_thresholds(evidence, entropy())
    layers = sweep(evidence, entropy(), bench.metric_of("movie"), thresholds).layers
    assert len(layers) == bench.THRESHOLDS
    assert np.diff(layers) == pytest.approx((layers.max() - layers.min()) / (bench.THRESHOLDS - 1), abs=0.1)


def test_replicas_share_one_pass_of_the_encoder_and_the_naive_way_takes_one_for_each():
    samples, _ = bench._random_samples(8)
    model = bench.build_consistentee("tiny")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = []
    model.backbone.model.encoder.layer[0].register_forward_hook(lambda *_: passes.append(1))
    noted = samples.with_notes(memorized_layer=(samples.ids, torch.ones(8, dtype=torch.long)))
    before = model.exits["1"].policy[0].weight.clone()
    bench.replica_step(model, optimizer, noted.batch(range(8)), passes=1)
    assert len(passes) == 1
    assert not torch.equal(model.exits["1"].policy[0].weight, before)
    bench.replica_step(model, optimizer, noted.batch(range(8)), passes=8)
    assert len(passes) == 1 + 8
