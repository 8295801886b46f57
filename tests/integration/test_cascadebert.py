"""CascadeBERT: a row of complete models from tokens to the runtime, its difficulty term, and what it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from eeutils.data.samples import Batch, encode
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.cascade import Cascade
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.models.vocabularies import same_vocabulary, tokenizers_of
from eeutils.papers import cascadebert, finetuned
from eeutils.papers.cascadebert import METHOD, CascadeOptions, Pairs, cascade_loss, difficulty_loss
from eeutils.training import fingerprint, settings
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import accuracy, answers_of, make_evidence
from tests.tiny import WORDS, sentences, tiny_encoder, tiny_samples, tiny_tokenizer

DEPTHS = (1, 2, 4)


def plain(depth: int, seed: int = 0, classes: int = 2) -> MultiExitModel:
    """A complete tiny model of one exit, whose answers vary enough that every model of a cascade has work to do."""
    encoder = Backbone(tiny_encoder(seed=seed + depth, num_hidden_layers=depth))
    head = Exit(encoder.width, classes, "cls", Pooler(encoder))
    model = MultiExitModel(encoder, {depth: head}).eval()
    samples = tiny_samples(40)
    with torch.no_grad():
        logits = model(*samples.batch(range(40)).inputs).logits[-1]
        head.classifier.weight.div_(logits.std(dim=0).mean())
        head.classifier.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0).mean())
    return model


def cascade(depths: tuple[int, ...], encodings: list[int] | None = None) -> Cascade:
    return Cascade([plain(depth) for depth in depths], encodings).eval()


def other_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny words in another order and cut into letters where they are long: other ids, other lengths."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS[::-1], *"abcdefghijklmnopq"]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("e", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=40,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_folder(folder: Path, depth: int, tokenizer: PreTrainedTokenizerBase, **changes: int) -> str:
    tiny_encoder(num_hidden_layers=depth, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(tmp_path_factory.mktemp("small") / "two-layers", 2, tiny_tokenizer())


@pytest.fixture(scope="module")
def strange_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(tmp_path_factory.mktemp("small") / "other-words", 1, other_tokenizer())


@pytest.mark.parametrize("depths", [DEPTHS[1:], DEPTHS])
def test_a_row_of_models_runs_as_it_is_simulated_at_every_batch_size(depths: tuple[int, ...]) -> None:
    model, samples = cascade(depths), tiny_samples(40)
    evidence = record(model, samples)
    rule = rules.confidence()
    for threshold in (0.6, 0.75, rules.NEVER):
        simulated = tradeoff.decide(evidence, rule, threshold)
        for batch_size in (1, 7, 40):
            outcome = Runtime(model, rule, threshold)(samples, batch_size=batch_size)
            assert outcome.stages.tolist() == simulated.stages.tolist()
            torch.testing.assert_close(outcome.logits.float(), simulated.logits, atol=1e-4, rtol=1e-4)
    assert len(tradeoff.decide(evidence, rule, 0.75).stages.unique()) == len(depths)


def test_no_model_runs_on_a_sample_that_an_earlier_one_settled() -> None:
    model, samples, rule = cascade(DEPTHS), tiny_samples(40), rules.confidence()
    stages = tradeoff.decide(record(model, samples), rule, 0.75).stages
    reached = [int((stages >= stage).sum()) for stage in range(3)]
    assert 40 == reached[0] > reached[1] > reached[2] > 0
    ran: list[list[int]] = [[], [], []]
    tokens: list[list[int]] = [[], [], []]
    hooks = []
    for stage, part in enumerate(model.models):
        for layer in part.backbone.layers:

            def count(module: torch.nn.Module, inputs: tuple[Tensor, ...], stage: int = stage) -> None:
                ran[stage].append(len(inputs[0]))
                tokens[stage].append(inputs[0].shape[1])

            hooks.append(layer.register_forward_pre_hook(count))
    Runtime(model, rule, 0.75)(samples, batch_size=40)
    for hook in hooks:
        hook.remove()
    # Every layer of a model runs once, on the samples that came as far.
    assert [set(counts) for counts in ran] == [{count} for count in reached]
    assert [len(counts) for counts in ran] == list(DEPTHS)
    longest = [int(samples.lengths[stages >= stage].max()) for stage in range(3)]
    assert [set(widths) for widths in tokens] == [{length} for length in longest]


def test_cost_adds_up_over_the_models_that_ran_and_is_measured_against_the_last() -> None:
    model, samples = cascade(DEPTHS), tiny_samples(12)
    assert model.layers == (1, 3, 7)
    assert model.reference_layers == 4
    evidence = record(model, samples)
    cost = evidence.cost["flops"]
    alone = [record(part, samples).cost["flops"][-1] for part in model.models]
    torch.testing.assert_close(cost[0], alone[0])
    torch.testing.assert_close(cost[2], alone[0] + alone[1] + alone[2])
    torch.testing.assert_close(evidence.reference["flops"], alone[2])
    curve = tradeoff.sweep(evidence, rules.confidence(), accuracy)
    assert curve.layer_speedup.max() == pytest.approx(4)
    # A cascade that always goes on is slower than the large model alone, and says so.
    assert curve.layer_speedup.min() == pytest.approx(4 / 7)


def test_every_model_answers_as_it_does_alone() -> None:
    model, samples = cascade(DEPTHS), tiny_samples(12, pairs=True)
    together = record(model, samples)
    for stage, part in enumerate(model.models):
        torch.testing.assert_close(together.logits[stage], record(part, samples).logits[0], atol=1e-5, rtol=1e-5)


def test_models_of_two_vocabularies_each_read_their_own() -> None:
    texts, labels = sentences(30)
    both = [tiny_tokenizer(), other_tokenizer()]
    samples = encode(both, texts, max_length=40, labels=labels)
    alone = [encode(tokenizer, texts, max_length=40, labels=labels) for tokenizer in both]
    assert samples.lengths.tolist() != samples.others[0].lengths.tolist()
    model, rule = cascade((1, 3), encodings=[1, 0]), rules.confidence()
    evidence = record(model, samples)
    small, large = record(model.models[0], alone[1]), record(model.models[1], alone[0])
    for logits, wanted in zip(evidence.logits, (small, large), strict=True):
        torch.testing.assert_close(logits, wanted.logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evidence.cost["flops"][1], small.cost["flops"][0] + large.cost["flops"][0])
    torch.testing.assert_close(evidence.reference["flops"], large.cost["flops"][0])
    stages = tradeoff.decide(evidence, rule, 0.7).stages
    assert len(stages.unique()) == 2
    for batch_size in (1, 8):
        assert Runtime(model, rule, 0.7)(samples, batch_size=batch_size).stages.tolist() == stages.tolist()
    from_texts = Runtime(model, rule, 0.7, both, max_length=40)(texts)
    assert from_texts.stages.tolist() == stages.tolist()


def test_a_batch_in_one_vocabulary_is_refused_by_models_of_two() -> None:
    with pytest.raises(InputError, match="reads 2 vocabularies and the batch has 1"):
        record(cascade((1, 2), encodings=[1, 0]), tiny_samples(4))
    for encodings in ([0], [0, 2], [1, 1]):
        with pytest.raises(InputError, match="one encoding each"):
            cascade((1, 2), encodings=encodings)


def test_a_vocabulary_is_the_same_when_pieces_normalisation_and_special_tokens_are() -> None:
    one, other = tiny_tokenizer(), tiny_tokenizer()
    one(["good film"], truncation=True, max_length=5)  # leaves its cut behind in the tokenizer
    assert same_vocabulary(one, other)
    assert not same_vocabulary(one, other_tokenizer())
    cased = tiny_tokenizer()
    cased.backend_tokenizer.normalizer = normalizers.NFC()
    assert not same_vocabulary(one, cased)
    padded = tiny_tokenizer()
    padded.pad_token = "[UNK]"
    assert not same_vocabulary(one, padded)


def test_each_model_keeps_its_own_number_of_layers(setting: Setting, small_folder: str) -> None:
    # The authors' code builds all models with the last one's configuration: 2 layers would come with random others.
    model = cascadebert.build(setting, 3, CascadeOptions((small_folder,)))
    assert [len(part.backbone.layers) for part in model.models] == [2, 4]
    saved = tiny_encoder(num_hidden_layers=2).state_dict()
    loaded = model.models[0].backbone.model.state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert model.layers == (2, 6)
    assert model(*tiny_samples(3).batch([0, 1, 2]).inputs).logits.shape == (2, 3, 3)


def test_tokens_are_shared_where_vocabularies_are_the_same(
    setting: Setting, small_folder: str, strange_folder: str
) -> None:
    big = setting.backbone
    for smaller, vocabularies in (((small_folder,), [big]), ((strange_folder, small_folder), [big, strange_folder])):
        names = METHOD.encoders(setting, CascadeOptions(smaller))
        assert names == (*smaller, big)
        assert [tokenizer.name_or_path for tokenizer in tokenizers_of(names)] == vocabularies
    assert cascadebert.build(setting, 2, CascadeOptions((strange_folder, small_folder))).encodings == (1, 0, 0)


def test_before_the_base_encoder_stand_one_or_two_small_ones_of_another_vocabulary() -> None:
    setting = Setting(backbone="mpnet-base")
    assert METHOD.encoders(setting, CascadeOptions()) == ("minilm-l6", "mpnet-base")
    both = METHOD.with_options(models=("minilm-l3", "minilm-l6"))
    assert METHOD.encoders(setting, both) == ("minilm-l3", "minilm-l6", "mpnet-base")


@pytest.mark.usefixtures("tiny_tasks")
def test_three_models_of_two_families_and_two_vocabularies_from_training_to_the_runtime(
    setting: Setting, small_folder: str, tmp_path: Path
) -> None:
    smallest = save_folder(tmp_path / "one-layer", 1, tiny_tokenizer())
    large = tmp_path / "mpnet"
    tiny_encoder("mpnet").save_pretrained(large)
    other_tokenizer().save_pretrained(large)
    here = replace(setting, backbone=str(large), epochs=4, learning_rate=5e-3, pool="mean")
    run = load_or_train(METHOD, here, progress=False, models=(smallest, small_folder), weight=0.0)
    assert run.model().encodings == (1, 1, 0)
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    rule = METHOD.rules["confidence"]
    for threshold in (0.7, 0.9, rules.NEVER):
        simulated = tradeoff.decide(run.test, rule, threshold)
        for batch_size in (1, 8):
            outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=batch_size)
            assert outcome.stages.tolist() == simulated.stages.tolist()
    assert run.test.layers == (1, 3, 7)


def test_each_model_of_a_row_learns_as_fast_as_an_encoder_of_its_size(
    setting: Setting, small_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = save_folder(tmp_path / "narrow", 1, tiny_tokenizer(), hidden_size=8)
    monkeypatch.setattr(settings, "BASE_WIDTH", 16)
    model = cascadebert.build(setting, 2, CascadeOptions((narrow, small_folder)))
    assert [part.rate for part in model.models] == [pytest.approx(1e-4 / 3e-5), 1.0, 1.0]


def test_models_that_do_not_fit_are_refused_before_training(
    setting: Setting, small_folder: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no smaller complete model is known .* models=\(...\)"):
        cascadebert.build(setting, 2, CascadeOptions())
    with pytest.raises(InputError, match="a regression has no probabilities"):
        load_or_train(METHOD, replace(setting, task="movie-valence"), models=(small_folder,), progress=False)
    few = save_folder(tmp_path / "few", 1, tiny_tokenizer(), vocab_size=10)
    with pytest.raises(InputError, match="has 20 tokens and its encoder embeds 10"):
        cascadebert.build(setting, 2, CascadeOptions((few,)))
    short = save_folder(tmp_path / "short", 1, tiny_tokenizer(), max_position_embeddings=30)
    with pytest.raises(InputError, match="reads 30 tokens and max_length is 40"):
        cascadebert.build(setting, 2, CascadeOptions((short,)))
    for options, sentence in (
        ({"weight": -1.0, "margin": 0.5, "pairs": "all"}, "weight is 0 or more"),
        ({"weight": 1.0, "margin": 1.5, "pairs": "all"}, "margin above 0"),
        ({"weight": 1.0, "margin": 0.5, "pairs": "every"}, "unknown pairs 'every'"),
    ):
        with pytest.raises(InputError, match=sentence):
            METHOD.with_options(**options)


# The difficulty term


def test_the_difficulty_term_worked_out_by_hand() -> None:
    confidence, hard = torch.tensor([0.9, 0.7, 0.8]), torch.tensor([False, False, True])
    # Gaps to the hard one: 0.1 and -0.1; with a margin of 0.3 they lack 0.2 and 0.4.
    assert difficulty_loss(confidence, hard, 0.3, "all").item() == pytest.approx(0.3)
    assert difficulty_loss(confidence, hard, 0.3, "sampled").item() == pytest.approx(0.3)  # one hard one to draw


def test_the_sampled_form_is_the_pair_form_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence, hard = torch.rand(12, generator=generator), torch.arange(12) % 3 == 0
    pairs = [max(0.0, 0.4 - float(i - j)) for i in confidence[~hard] for j in confidence[hard]]
    assert difficulty_loss(confidence, hard, 0.4, "all").item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    torch.manual_seed(0)
    drawn = torch.stack([difficulty_loss(confidence, hard, 0.4, "sampled") for _ in range(3000)])
    assert drawn.std() > 0
    assert drawn.mean().item() == pytest.approx(sum(pairs) / len(pairs), abs=4 * drawn.std().item() / 3000**0.5)


@pytest.mark.parametrize("pairs", get_args(Pairs))
def test_the_difficulty_term_lifts_easy_samples_and_lowers_hard_ones(pairs: Pairs) -> None:
    confidence = torch.tensor([0.6, 0.9, 0.8], requires_grad=True)
    difficulty_loss(confidence, torch.tensor([False, True, False]), 0.5, pairs).backward()
    assert confidence.grad[0] < 0 < confidence.grad[1]
    assert confidence.grad[2] < 0


@pytest.mark.parametrize("hard", [[True, True], [False, False]])
def test_without_both_kinds_in_a_batch_there_is_nothing_to_compare(hard: list[bool]) -> None:
    confidence = torch.tensor([0.6, 0.9], requires_grad=True)
    loss = difficulty_loss(confidence, torch.tensor(hard), 0.5, "all")
    loss.backward()
    assert loss.item() == 0
    assert confidence.grad.tolist() == [0, 0]


def test_the_loss_is_the_sum_over_models_and_the_term_leaves_the_last_one_alone() -> None:
    logits = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    zeros, labels = torch.zeros(4, 2, dtype=torch.long), torch.tensor([0, 1, 1, 0])
    hard = torch.tensor([0, 1, 0, 1])
    batch = Batch(zeros, zeros + 1, None, labels, torch.arange(4), {"difficulty": hard})

    def loss(weight: float, logits: Tensor = logits) -> Tensor:
        options = CascadeOptions(weight=weight, margin=0.5, pairs="all")
        return cascade_loss(options, cascade((1,)), answers_of(logits), batch)

    entropies = sum(torch.nn.functional.cross_entropy(stage, labels) for stage in logits)
    assert loss(0.0).item() == pytest.approx(entropies.item(), rel=1e-5)
    confidence = logits.softmax(dim=-1).amax(dim=-1)
    terms = sum(difficulty_loss(confidence[stage], hard.bool(), 0.5, "all") for stage in (0, 1))
    assert loss(2.0).item() == pytest.approx((entropies + 2 * terms).item(), rel=1e-5)


@pytest.mark.usefixtures("tiny_tasks")
def test_difficulty_is_what_most_models_that_did_not_see_a_sample_get_wrong(
    setting: Setting, small_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    right = {0: [1, 1, 0, 0], 1: [1, 0, 0, 1], 2: [1, 0, 1, 0]}

    def opinion(method: object, small: Setting, folds: int, seed: int) -> object:
        asked.append((method, small.backbone, folds, seed))
        labels = torch.tensor([0, 1, 0, 1])
        answers = torch.where(torch.tensor(right[seed]).bool(), labels, 1 - labels)
        return make_evidence(torch.nn.functional.one_hot(answers, 2)[None].float(), labels, ids=[7, 3, 9, 1])

    monkeypatch.setattr(cascadebert, "out_of_fold", opinion)
    options = METHOD.with_options(models=(small_folder,), folds=2, repeats=3)
    notes = METHOD.annotate(setting, options)
    ids, hard = notes["difficulty"]
    assert dict(zip(ids.tolist(), hard.tolist(), strict=True)) == {7: 0, 3: 1, 9: 1, 1: 1}
    assert asked == [(finetuned.METHOD, small_folder, 2, seed) for seed in range(3)]
    assert METHOD.annotate(setting, replace(options, weight=0.0)) == {}


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("smaller", ["small_folder", "strange_folder"])
def test_from_difficulty_over_training_to_the_runtime(
    setting: Setting, smaller: str, request: pytest.FixtureRequest
) -> None:
    options = {"models": (request.getfixturevalue(smaller),), "folds": 2, "repeats": 1}
    run = load_or_train(METHOD, replace(setting, epochs=6, learning_rate=5e-3, pool="mean"), progress=False, **options)
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    rule = METHOD.rules["confidence"]
    threshold = tradeoff.threshold_for_speedup(run.dev, rule, 1.2)
    simulated = tradeoff.decide(run.test, rule, threshold)
    assert len(simulated.stages.unique()) == 2
    outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=5)
    assert outcome.stages.tolist() == simulated.stages.tolist()
    tokenizers = tokenizers_of(run.encoders)
    texts = sentences(24, seed=2)[0]  # the texts of the test split
    assert Runtime(run.model(), rule, threshold, tokenizers, 40)(texts).stages.tolist() == simulated.stages.tolist()
    # Another task's texts are read in all vocabularies, too.
    assert run.evidence_on("amazon").samples == 24


@pytest.mark.usefixtures("tiny_tasks")
def test_other_weights_of_a_smaller_model_are_another_run(setting: Setting, tmp_path: Path) -> None:
    smaller = Path(shutil.copytree(setting.backbone, tmp_path / "smaller"))
    options = METHOD.with_options(models=(str(smaller),))
    before = fingerprint.run_key(METHOD, setting, options)
    tiny_encoder(seed=7).save_pretrained(smaller)
    fingerprint._weights_fingerprint.cache_clear()
    assert fingerprint.run_key(METHOD, setting, options) != before
