"""Decoders on a generation task: the plain model fine-tuned, and exits that learn from one pass of its states.

The fine-tuned plain model is the reference of every speed-up. Exits are trained with the decoder frozen: its states at
their layers are recorded once, and all that is learned afterwards costs no pass through the layers.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from eeutils.data import prompts, samples
from eeutils.data.pairs import PairTask, check_pair_task, load_pairs
from eeutils.data.prompts import encode_pairs
from eeutils.data.samples import Batch, Samples
from eeutils.errors import InputError, unknown
from eeutils.exiting.rules import NEVER, Rule
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.files import atomic_write, sha256
from eeutils.models.decoder import Decoder, check_decoder, load_decoder, load_decoder_tokenizer, resolve_decoder
from eeutils.models.generate import Generator, Outcome, Written
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.models.token_exits import TokenExitModel, next_words
from eeutils.models.token_record import prices_of, record_states, record_tokens
from eeutils.training import loop
from eeutils.training.checkpoints import remove_checkpoints
from eeutils.training.fingerprint import environment, key_of, what_it_computes
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.recorded_exits import (
    RecordedExits,
    as_samples,
    every_exit_loss,
    fit_judge,
    learned_exits,
    linear_maps,
    start_from,
    words_of,
    words_of_linear,
)
from eeutils.training.runs import KEY_LETTERS, as_trained, only_one, runs_dir
from eeutils.training.settings import Setting

PROFILES: dict[str, dict[str, Any]] = {
    # Seconds: shows that everything runs, on a decoder that knows nothing. Its numbers mean nothing.
    "smoke": {"train_size": 64, "test_size": 24, "max_length": 24, "learning_rate": 1e-3},
    # A quarter of an hour on one core that multiplies bfloat16, then minutes.
    "quick": {"train_size": 1600, "test_size": 120, "max_length": 64},
    "study": {"train_size": 4000, "test_size": 500, "max_length": 96},
    "full": {"train_size": None, "test_size": None, "max_length": 128},
}
"""Profile -> how many pairs, and tokens of a text to be read."""

EVERY, RANK = 3, 64
"""Exits stand on every third layer, and their maps have this rank: a fiftieth of a layer's work."""
TEXTS, UNITS, EXIT_RATE, EXIT_EPOCHS = 1000, 8000, 1e-3, 2
"""So many texts are recorded at most; of their units so many train the exits' maps, at this rate, so many times."""
SHORTLIST = 2000
"""Words in the shortlist: a look at them costs a third of a layer."""
TARGET_TOKENS = 24
"""What is to be written is cut to so many tokens; nineteen of twenty descriptions are shorter."""


def decoder_setting(profile: str, task: str, name: str, seed: int, **changes: Any) -> Setting:
    """A profile's setting for a generation task and a decoder: `max_length` is that of the text to be read.

    Raises:
        InputError: an unknown profile, task or decoder; the sentence lists the valid ones.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    check_pair_task(task)
    check_decoder(name)
    usual = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-4, "head_rate": 1.0}
    return Setting(task=task, backbone=name, seed=seed, **(usual | PROFILES[profile] | changes))


@lru_cache(maxsize=8)
def tokenizer_of(setting: Setting) -> PreTrainedTokenizerBase:
    """The decoder's tokenizer."""
    return load_decoder_tokenizer(setting.backbone)


def pairs_of(setting: Setting) -> PairTask:
    """The setting's task."""
    return load_pairs(setting.task, setting.train_size, setting.test_size)


def prompts_of(setting: Setting, split: str, targets: list[list[int]] | None = None) -> Samples:
    """A split as samples; with other texts to be written than its own, if `targets` are given."""
    part = getattr(pairs_of(setting), split)
    return encode_pairs(tokenizer_of(setting), part, setting.max_length, TARGET_TOKENS, targets)


def next_word_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """The mean cross entropy of what the top says, over all words to be written."""
    words = next_words(batch.input_ids, batch.token_type_ids)
    return answer_loss(answers.logits[-1:], words).mean()


def finetuned(setting: Setting, layers: int | None = None, *, progress: bool = True) -> Path:
    """The folder of the plain decoder fine-tuned on the task, or of its first `layers` layers alone.

    Raises:
        InputError: a task for evaluation only, and whatever data and decoder refuse.
    """
    if not pairs_of(setting).train:
        raise InputError(f"task {setting.task!r} is for evaluation only; train on another one")

    def train(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        model = TokenExitModel(_decoder(setting, layers))
        history = loop.fit(
            model,
            [Phase("fine-tune", next_word_loss)],
            prompts_of(setting, "train"),
            setting,
            work,
            progress=progress,
        )
        return model, {"history": history}

    part = f"-layers={layers}" if layers else ""
    return load_or_make(f"decoder{part}", setting, {"layers": layers}, train)


def _decoder(setting: Setting, layers: int | None = None) -> Decoder:
    plain = load_decoder(setting.backbone)
    return plain if layers is None else plain.truncate(layers)


def plain_model(setting: Setting, layers: int | None = None, *, progress: bool = True) -> TokenExitModel:
    """The fine-tuned decoder, trained when it is not there yet."""
    folder = finetuned(setting, layers, progress=progress)
    model = TokenExitModel(_decoder(setting, layers))
    read_weights(model, folder)
    if layers is not None:
        model.reference_layers = _decoder(setting).depth
    return model.eval()


@dataclass(frozen=True)
class DecoderRun:
    """A trained decoder, and what it wrote, read from disk when asked for."""

    directory: Path
    setting: Setting

    @property
    def task(self) -> PairTask:
        """The task and its splits."""
        return pairs_of(self.setting)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch, as `loop.fit` returns it."""
        return pd.read_csv(self.directory / "history.csv")

    def prompts(self, split: str) -> list[list[int]]:
        """The token ids of a split's prompts."""
        samples_of_split = prompts_of(self.setting, split)
        return [
            [token for token, kind in zip(tokens, types, strict=True) if kind == 0]
            for tokens, types in zip(samples_of_split.tokens, samples_of_split.types, strict=True)
        ]

    def written(self, split: str, how: Mapping[str, Any], make: Callable[[], list[Outcome]]) -> list[Outcome]:
        """What `make` writes on a split, kept with the run under all that decides it (`how`)."""
        about = {"split": pairs_of(self.setting).fingerprints[split], "how": how, "longest": TARGET_TOKENS}
        path = self.directory / f"texts-{split}-{key_of(about)[:KEY_LETTERS]}.json"
        if not path.exists():
            with atomic_write(path) as partial:
                partial.write_text(json.dumps([asdict(outcome) for outcome in make()]), encoding="utf-8")
        kept = json.loads(path.read_text(encoding="utf-8"))
        return [Outcome(**{**one, "written": [Written(**each) for each in one["written"]]}) for one in kept]

    def written_by(
        self, split: str, how: Mapping[str, Any], writer: Callable[[], Generator], progress: bool = True
    ) -> Outcome:
        """What one generator, made when it is needed, writes on a split; kept as by `written`."""

        def make() -> list[Outcome]:
            return [writer().generate_tokens(self.prompts(split), TARGET_TOKENS + 1, 16, progress)]

        return self.written(split, how, make)[0]

    def recorded(self, split: str, how: list[Any], make: Callable[[], TokenEvidence]) -> TokenEvidence:
        """What `make` records of a split, kept with the run under all that decides it (`how`)."""
        about = [self.task.fingerprints[split], *how]
        path = self.directory / f"evidence-{split}-{key_of({'about': about})[:KEY_LETTERS]}.safetensors"
        if not path.exists():
            make().save(path)
        return TokenEvidence.load(path)


@dataclass(frozen=True)
class ExitRun(DecoderRun):
    """A fine-tuned decoder with trained exits, and what it said."""

    exits: tuple[int, ...]
    rank: int

    @cached_property
    def model(self) -> TokenExitModel:
        """In evaluation mode and in the arithmetic of its training: bfloat16 halves what a word has to read."""
        return self.built().to(trained_dtype()).eval()

    def built(self) -> TokenExitModel:
        """A new model with the trained weights, in single precision: to be trained further."""
        model = TokenExitModel(plain_model(self.setting).decoder, self.exits, self.rank)
        model.judge = nn.Linear(model.decoder.width, 1)
        read_weights(_exit_parts(model), self.directory)
        return model

    @cached_property
    def learned(self) -> pd.DataFrame:
        """The gate, on dev: see `learned_exits`."""
        return learned_exits(pd.read_csv(self.directory / "gate-words.csv"))

    @cached_property
    def shortlist(self) -> Int[Tensor, " words"]:
        """The words that stand most often in the training targets, most frequent first."""
        counts: Counter[int] = Counter()
        train = prompts_of(self.setting, "train")
        for tokens, types in zip(train.tokens, train.types, strict=True):
            counts.update(token for token, kind in zip(tokens, types, strict=True) if kind == 1)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return torch.tensor([word for word, _ in ordered][:SHORTLIST])

    def evidence(self, split: str, rule: Rule | None = None, threshold: float = NEVER) -> TokenEvidence:
        """What the stages say of the words of a split's own targets: all tokens running all layers, which leaves keys
        and values exact, or frozen where a rule lets them leave. Recorded once."""
        shortlist = self.shortlist

        def make() -> TokenEvidence:
            texts = prompts_of(self.setting, split)
            return record_tokens(self.model, texts, rule, threshold, shortlist=shortlist, progress=True)

        found = self.recorded(split, [rule.name if rule else "", threshold if rule else 0], make)
        prices = prices_of(self.model, len(shortlist))
        return replace(found, prices=prices).priced(rule.look if rule else "head")


def trained_dtype() -> torch.dtype:
    """The numbers in which a trained decoder is run: those of its training."""
    return torch.bfloat16 if loop.precision() == "bf16" else torch.float32


def with_exits(
    setting: Setting, exits: tuple[int, ...] | None = None, rank: int = RANK, *, progress: bool = True
) -> ExitRun:
    """The fine-tuned decoder with exits on some layers, every third unless given (every one of a shallow decoder);
    trained when not there yet.

    One pass over the training texts records the states at the exits. Least squares make a first map of each, the loop
    of all methods trains them on the words that follow, and CALM's classifier learns when they say what the top says.
    """
    plain = finetuned(setting, progress=progress)
    model = plain_model(setting)
    depth, rank = model.decoder.depth, min(rank, model.decoder.width)
    every = exits or tuple(range(EVERY, depth, EVERY) if depth >= 4 * EVERY else range(1, depth))

    def train(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        whole = TokenExitModel(model.decoder, every, rank).eval()
        states, words, _ = written_states(whole, setting, "train", progress)
        linear = linear_maps(states)
        start_from(whole, linear)
        rows = torch.linspace(0, len(words) - 1, min(len(words), UNITS)).long()
        whole.decoder.requires_grad_(False)
        own = replace(setting, batch_size=64, learning_rate=EXIT_RATE, epochs=EXIT_EPOCHS)
        units = as_samples(words[rows], 0)
        phases = [Phase("exits", every_exit_loss)]
        history = loop.fit(RecordedExits(whole, states[:-1, rows]), phases, units, own, work, progress=progress)
        whole.judge = fit_judge(states[:, rows], words_of(whole, states[:, rows]))
        return _exit_parts(whole), {"history": history, "gate-words": gate_words(whole, linear, setting, progress)}

    options = {"exits": every, "rank": rank, "texts": TEXTS, "units": UNITS, "rate": EXIT_RATE, "epochs": EXIT_EPOCHS}
    directory = load_or_make("decoder-exits", setting, options | {"starts_from": plain.name}, train)
    return ExitRun(directory, setting, every, rank)


def gate_words(
    model: TokenExitModel, linear: Float[Tensor, "exits width width"], setting: Setting, progress: bool
) -> pd.DataFrame:
    """What the gate is decided by: of every word of dev its text, the right word, and what each exit and each whole
    linear map says (columns text, right, exit_L, linear_L)."""
    states, right, texts = written_states(model, setting, "dev", progress)
    said, probes = words_of(model, states), words_of_linear(model, linear, states)
    columns = {"text": texts, "right": right}
    columns |= {f"exit_{layer}": words for layer, words in zip(model.layers, said, strict=True)}
    columns |= {f"linear_{layer}": words for layer, words in zip(model.layers, probes, strict=False)}
    return pd.DataFrame({name: words.numpy() for name, words in columns.items()})


def written_states(
    model: TokenExitModel, setting: Setting, split: str, progress: bool, most: int = TEXTS
) -> tuple[Float[Tensor, "stages units width"], Int[Tensor, " units"], Int[Tensor, " units"]]:
    """Of the words that may leave early of a split's first texts, `most` of them: states, next words, and texts. In the
    arithmetic of training: states are kept in half precision anyway."""
    samples_of_split = prompts_of(setting, split)
    samples_of_split = samples_of_split.take(range(min(len(samples_of_split), most)))
    with as_trained(model.decoder.head_weight.device):
        states, words, texts, written = record_states(model, samples_of_split, progress=progress)
    return states[:, written], words[written], texts[written]


def _exit_parts(model: TokenExitModel) -> nn.ModuleDict:
    return nn.ModuleDict({"maps": model.maps, "judge": model.judge})


_CODE = (samples, prompts, loop)
"""What decides a training beside its setting. How a decoder is run does not count: tests hold it to transformers'."""
_VERSION = 1


def load_or_make(
    name: str,
    setting: Setting,
    options: dict[str, Any],
    train: Callable[[Path], tuple[nn.Module, Mapping[str, pd.DataFrame]]],
) -> Path:
    """The folder of what `train` makes: there already, or made once, whole or not at all."""
    config = {
        "name": name,
        "options": options,
        "version": _VERSION,
        "setting": {name: value for name, value in setting.to_dict().items() if name != "test_size"},
        "targets": TARGET_TOKENS,
        "weights": _weights_of(setting.backbone),
        "data": pairs_of(setting).fingerprints["train"],
        "code": key_of({"code": [what_it_computes(inspect.getsource(module)) for module in _CODE]}),
        "precision": loop.precision(),
    }
    key = key_of(config)[:KEY_LETTERS]
    directory = runs_dir() / f"{name}-{Path(setting.task).stem}-seed{setting.seed}-{key}"
    if directory.exists():
        return directory
    with only_one(key):
        if not directory.exists():
            work = runs_dir() / f".work-{key}"
            loop.set_seed(setting.seed)
            model, tables = train(work)
            with atomic_write(directory) as partial:
                partial.mkdir()
                save_model(model, str(partial / "model.safetensors"))
                for kind, table in tables.items():
                    table.to_csv(partial / f"{kind}.csv", index=False)
                for kind, facts in (("config", config), ("environment", environment())):
                    (partial / f"{kind}.json").write_text(json.dumps(facts, indent=2) + "\n")
            remove_checkpoints(work)
    return directory


def _weights_of(name: str) -> list[list[str]]:
    folder = Path(resolve_decoder(name))
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    return [[path.name, sha256(path)] for path in files] or [[name, ""]]


def read_weights(model: nn.Module, folder: Path) -> None:
    """The weights of a run's folder into a model, in place.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        load_model(model, folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be read ({error}); delete it and run again") from error
