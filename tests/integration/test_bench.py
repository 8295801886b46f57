"""The bench at its quick size: what it compares is what it says, and its table holds together. No speed is asserted."""

import numpy as np
import pandas as pd
import pytest
import torch

from eeutils.exiting import rules
from eeutils.models.tiny import tiny_decoder
from eeutils.models.token_record import record_tokens
from eeutils.papers import consistentee, pabee
from eeutils.papers.controls.writing_clocks import MOST, transformers_way, way_of
from workflow import bench, bench_generation


@pytest.fixture(scope="module")
def quick_table(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "results" / "bench.csv"
    bench.main(["--quick", "--output", str(output)])
    return pd.read_csv(output)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("encoder"))
    bench.save_tiny_encoder(folder)
    return folder


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


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (">= 3.5", 3.5, True),
        (">= 3.5", 3.499, False),
        ("<= 5", 5, True),
        ("<= 5", 5.001, False),
        ("<= 5", -2, True),
        ("", 1, None),
    ],
)
def test_met_says_whether_the_value_reaches_its_target(target, value, met):
    assert bench.Row("what", value, "x", "note", target).met is met


def test_only_what_has_a_target_is_judged(quick_table):
    assert quick_table.met.notna().equals(quick_table.target.notna())


@pytest.mark.parametrize(
    ("what", "target"),
    [
        ("training, length buckets against every batch padded to 128", ">= 3.5"),
        ("training, length buckets against random batches", ">= 1.5"),
        ("ConsistentEE, 8 replicas on one pass of the encoder against as many passes", ">= 4"),
        ("sweep of 20 thresholds", ">= 15"),
        ("training loop at base size, its speed over that of bare steps", ">= 0.9"),
        ("peak memory, at base size, training, length buckets", "<= 6000"),
        ("realised over layer speed-up, batch 1", ">= 0.95"),
        ("realised over layer speed-up, batch 8", ">= 0.9"),
        ("realised over layer speed-up, batch 32", ">= 0.9"),
        ("generation, overhead when no word leaves, prompts of 8 tokens, batch 1", "<= 5"),
        ("generation, realised over FLOPs speed-up, prompts of 8 tokens, batch 1", ">= 0.9"),
        ("peak memory, token evidence of 10,000 tokens", "<= 1000"),
        ("overhead when nobody exits, batch 1", "<= 4"),
        ("overhead when nobody exits, batch 32", "<= 2"),
    ],
)
def test_every_promised_figure_stands_in_the_table_with_its_target(quick_table, what, target):
    assert target in set(quick_table.target[quick_table.what.str.contains(what, regex=False)])


@pytest.mark.parametrize(
    "work", ["training, length buckets", "recording and sweep", "runtime with early", "plain model"]
)
def test_memory_is_measured_of_all_that_is_timed(quick_table, work):
    [unit] = quick_table.unit[quick_table.what.str.startswith(f"peak memory, {work}")]
    assert unit == "MB"


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


def test_the_plain_model_answers_as_the_last_exit_does(encoder):
    model, samples = bench.build(pabee.METHOD, encoder), bench.random_samples(8)
    [plain] = bench.passes(bench.plain(model), samples, 8)
    [all_exits] = bench.passes(model, samples, 8)
    assert plain().shape == (1, 8, 2)
    assert torch.allclose(plain()[0], all_exits()[-1], atol=1e-6)


def test_the_bound_of_early_exits_is_every_layer_on_the_rows_that_the_runtime_has_there(encoder):
    model, samples = bench.build(pabee.METHOD, encoder), bench.random_samples(24)
    runtime = bench.Runtime(model, bench.random(), 0.3)
    left, ran = runtime(samples).stages, []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda layer, given, _: ran.append((id(layer), len(given[0]))))
    for calls in (runtime.calls(samples, 8), bench.layers_alone(model, samples, 8, left)):
        ran.append([call() and None for call in calls])
    cut = ran.index([None] * 3)
    assert ran[:cut] == ran[cut + 1 : -1]
    assert len({rows for _, rows in ran[:cut]}) > 2


def test_timed_training_batches_are_as_wide_as_those_of_a_whole_epoch():
    samples = bench.random_samples(32 * 200)
    for way in (bench.BUCKETS, bench.DYNAMIC):
        few, all_of_them = (bench.train_batches(samples, way, count) for count in (12, 200))
        mean_width = [np.mean([batch.input_ids.shape[1] for batch in group]) for group in (few, all_of_them)]
        assert mean_width[0] == pytest.approx(mean_width[1], rel=0.05)
    padded = bench.train_batches(samples, bench.PADDED, 3)
    assert {tuple(batch.input_ids.shape) for batch in padded} == {(32, bench.PADDED_TO)}


def test_the_loop_and_bare_steps_see_the_same_batches(encoder, monkeypatch):
    model, samples = bench.build(pabee.METHOD, encoder), bench.random_samples(64)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].tolist()))
    tracks = {}
    monkeypatch.setattr(
        bench, "race", lambda given, *_: tracks.update(given) or {name: np.ones((1, 1)) for name in given}
    )
    [row] = bench.loop_speed(model, samples, bench.QUICK)
    sides = []
    for name in ("bare", "loop"):
        seen.clear()
        tracks[name][0]()
        sides.append(list(seen))
    assert sides[0] == sides[1]
    assert len(sides[0]) == 2
    # As fast as bare steps but for its checkpoints.
    assert 0.9 < row.value <= 1


def test_all_ways_to_write_are_timed_on_equally_many_words_and_leaving_early_saves_flops():
    model, size = bench_generation.build(str(tiny_decoder())), bench_generation.QUICK
    prompts = bench_generation.random_tokens(model, size.prompts, size.tokens)
    never = bench_generation.generator(model, rules.fixed(), rules.NEVER)
    early = bench_generation.generator(model, rules.random(), 1 - bench_generation.LEAVE)
    plain = transformers_way(model, bench_generation.Endless())(prompts[0])
    [whole], [cut] = (way_of(each)(prompts[0]).written for each in (never, early))
    assert plain[0, size.tokens :].tolist() == whole.tokens
    assert len(cut.tokens) == len(whole.tokens) == MOST
    assert set(whole.layers) == {4}
    assert set(cut.layers) == {3, 4}
    assert bench_generation.flops_of(early, prompts) < bench_generation.flops_of(never, prompts)


def test_evidence_is_of_as_many_tokens_as_the_row_says():
    model, size = bench_generation.build(str(tiny_decoder())), bench_generation.QUICK
    chosen = bench_generation.texts(model, size.evidence // size.text, size.text)
    assert record_tokens(model, chosen).samples == size.evidence


def test_replicas_share_one_pass_of_the_encoder_and_the_naive_way_takes_one_for_each(encoder):
    samples, model = bench.random_samples(8), bench.build(consistentee.METHOD, encoder)
    noted = samples.with_notes(memorized_layer=(samples.ids, torch.ones(8, dtype=torch.long)))
    passes = []
    model.backbone.model.encoder.layer[0].register_forward_hook(lambda *_: passes.append(1))
    before = model.exit_at(0).policy[0].weight.clone()
    [shared] = bench.train_steps(model, consistentee.METHOD, [noted.batch(range(8))])
    shared()
    assert len(passes) == 1
    assert not torch.equal(model.exit_at(0).policy[0].weight, before)
    [naive] = bench.train_steps(model, consistentee.METHOD, [noted.batch(range(8))], passes=8)
    naive()
    assert len(passes) == 1 + 8
