"""Answering texts from an exported folder, stage by stage, with onnxruntime alone.

The graphs hold layers, exits and the rule; what is left to do here is to tokenise, to let those go who are ready, and
to re-pack the batch: what `models.runtime` does with PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from eeutils.data.texts import is_empty
from eeutils.errors import InputError

CONFIG, TOKENIZER = "deployment.json", "tokenizer.json"
VERSION = 1

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Answered:
    """What N texts were answered, and where each of them left.

    Attributes:
        answers: the class's name, or a number for regression, of each.
        scores: (N, C) as the rule gives them, the largest the answer: logits, or votes; (N, 1) for regression.
        layers: (N,) transformer layers that ran for each.
    """

    answers: list[str] | list[float]
    scores: np.ndarray
    layers: np.ndarray


@dataclass(frozen=True)
class Deployed:
    """An exported model.

    Attributes:
        folder: where it lies.
        config: what `deployment.json` says, with the threshold that was asked for.
        threads: of onnxruntime; None leaves the choice to it.
    """

    folder: Path
    config: dict[str, Any]
    threads: int | None = None
    _sessions: dict[int, onnxruntime.InferenceSession] = field(default_factory=dict, repr=False, compare=False)

    @property
    def threshold(self) -> float:
        """At which readiness a text leaves; infinity where nobody leaves early."""
        value = self.config["threshold"]
        return math.inf if value is None else value

    @cached_property
    def layers(self) -> np.ndarray:
        """(S,) transformer layers below each stage's answer."""
        return np.array([stage["layer"] for stage in self.config["stages"]])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.config["max_length"])
        return tokenizer

    def session(self, stage: int) -> onnxruntime.InferenceSession:
        """The graph of a stage (from 0), read when it is first asked for."""
        if stage not in self._sessions:
            options = onnxruntime.SessionOptions()
            # Each stage has threads of its own, and those that wait must not keep the cores from the next stage.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            if self.threads:
                options.intra_op_num_threads = self.threads
            file = self.folder / self.config["stages"][stage]["file"]
            self._sessions[stage] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return self._sessions[stage]

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        batch_size: int = 32,
        threshold: float | None = None,
    ) -> Answered:
        """Answer texts, or pairs of them, in their order.

        Args:
            texts, pairs: as many second texts as first ones, or none.
            batch_size: texts of like length that run together.
            threshold: in the place of the one that was chosen on dev.

        Raises:
            InputError: no text, an empty one, one text in the place of a list, or pairs that are not as many.
        """
        tokens = self.encode(texts, pairs)
        threshold = self.threshold if threshold is None else threshold
        order = np.argsort([len(each["input_ids"]) for each in tokens], kind="stable")
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        outcomes = [self.run(self.batch([tokens[row] for row in rows]), threshold) for rows in parts]
        back = np.argsort(order)
        stages, scores = (np.concatenate(each)[back] for each in zip(*outcomes, strict=True))
        return Answered(self.named(scores), scores, self.layers[stages])

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Token ids, and token types where the model reads them, of each text."""
        if isinstance(texts, str) or isinstance(pairs, str):
            raise InputError("give a list of texts; for a single text write [text]")
        if len(texts) == 0:
            raise InputError("there is nothing to answer: give at least one text")
        for place, text in enumerate(texts):
            if is_empty(text):
                raise InputError(f"the text at place {place} is empty; remove it or give it a text")
        if self.config["pairs"] != (pairs is not None):
            wanted = "pairs of texts: give a second list" if self.config["pairs"] else "single texts: leave pairs out"
            raise InputError(f"this model was trained on {wanted}")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"pairs need as many second texts as first ones; got {len(texts)} and {len(pairs)}")
        read = self.tokenizer.encode_batch(list(texts) if pairs is None else list(zip(texts, pairs, strict=True)))
        return [{"input_ids": one.ids, "token_type_ids": one.type_ids} for one in read]

    def batch(self, tokens: Sequence[dict[str, list[int]]]) -> Arrays:
        """The inputs of the first stage, padded on the right to the longest text."""
        width = max(len(each["input_ids"]) for each in tokens)

        def padded(name: str, value: int) -> np.ndarray:
            return np.array([[*each[name], *[value] * (width - len(each[name]))] for each in tokens], dtype=np.int64)

        mask = np.array([[1] * len(t["input_ids"]) + [0] * (width - len(t["input_ids"])) for t in tokens], np.int64)
        inputs = {"input_ids": padded("input_ids", self.config["padding"]), "attention_mask": mask}
        return inputs | ({"token_type_ids": padded("token_type_ids", 0)} if self.config["token_types"] else {})

    def run(self, inputs: Arrays, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """One batch: the stage (from 0) at which each text leaves, (B,), and its scores there, (B, C)."""
        units, state = len(inputs["input_ids"]), dict(inputs)
        stages, waiting, scores = np.zeros(units, dtype=np.int64), np.arange(units), None
        for stage in range(len(self.layers)):
            state, said = self.step(stage, state)
            scores = np.zeros((units, said["answer"].shape[1])) if scores is None else scores
            last = stage == len(self.layers) - 1
            done = np.ones(len(waiting), dtype=bool) if last else said["readiness"] >= threshold
            if done.any():
                stages[waiting[done]], scores[waiting[done]] = stage, said["answer"][done]
                if done.all():
                    break
                waiting, state = waiting[~done], _without(state, done)
        return stages, scores

    def step(self, stage: int, state: Arrays) -> tuple[Arrays, Arrays]:
        """Run one stage: the state that the next one reads, and what this one says."""
        session = self.session(stage)
        names = [each.name for each in session.get_inputs()]
        outputs = [each.name for each in session.get_outputs()]
        said = dict(zip(outputs, session.run(outputs, {name: state[name] for name in names}), strict=True))
        after = {"attention_mask": state["attention_mask"]}
        after |= {name.removeprefix("next."): array for name, array in said.items() if name.startswith("next.")}
        for name, earlier in self.config["heard"].items():  # what the rule reads of earlier stages
            now, key = said[name][None], f"heard.{name}"
            heard = now if key not in state else np.concatenate([state[key], now])
            after[key] = heard if earlier is None else heard[-earlier:]
        return after, said

    def named(self, scores: np.ndarray) -> list[str] | list[float]:
        """The answers behind scores (N, C)."""
        names = self.config["class_names"]
        return scores[:, 0].tolist() if not names else [names[place] for place in scores.argmax(axis=1)]


def load(folder: Path | str, speedup: float | None = None, threads: int | None = None) -> Deployed:
    """Open what `deploy.export` wrote.

    Args:
        folder: as it was written, or a copy of it.
        speedup: in FLOPs, one of those that thresholds were chosen for on dev; by default what was asked for at export.
        threads: of onnxruntime; None leaves the choice to it.

    Raises:
        InputError: not such a folder, one of another version, one of whose files is missing or not whole, or another
            speed-up; the sentence lists the valid ones.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} is not an exported model ({error}); make one with deploy.export") from error
    if config.get("version") != VERSION:
        raise InputError(f"{folder} was exported by another version of this package; export the run again")
    for name, wanted in config["sha256"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise InputError(f"{path} is missing or not what was exported; copy the whole folder again")
    if speedup is not None:
        known = config["thresholds"]
        if f"{speedup:g}" not in known:
            raise InputError(f"no threshold was chosen for {speedup:g}x; choose one of: {', '.join(known) or 'none'}")
        config["threshold"] = known[f"{speedup:g}"]
    return Deployed(folder, config, threads)


def _without(state: Arrays, done: np.ndarray) -> Arrays:
    """The state of those who stay, without the columns that are padding for all of them."""
    stay = ~done
    columns = state["attention_mask"][stay].any(axis=0)
    kept = {}
    for name, array in state.items():
        rows = array[:, stay] if name.startswith("heard.") else array[stay]
        kept[name] = rows[:, columns] if name in ("states", "attention_mask") else rows
    return kept
