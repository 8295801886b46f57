"""Stopping early for real.

After each stage the samples that are done leave the batch, and the rest is re-packed: rows that left go, and columns
that became padding for all who stay. The decisions come from the same rule as the offline sweep, so answers and
exit stages equal the simulation from evidence, sample by sample and at any batch size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eeutils.batching import Batch, Samples, Tokenizers, encode
from eeutils.errors import InputError
from eeutils.evidence import Evidence
from eeutils.exits import Answer, MultiStageModel, stack
from eeutils.rules import NEVER, Rule
from eeutils.tradeoff import Decision


@dataclass(frozen=True)
class Timing:
    """Wall-clock of one pass over some samples: seconds of each batch, after warm-up."""

    seconds: tuple[float, ...]
    samples: int

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.samples / sum(self.seconds)

    @property
    def mean(self) -> float:
        """Seconds a sample."""
        return sum(self.seconds) / self.samples

    def latency(self, percentile: float) -> float:
        """Milliseconds per batch at a percentile, such as 50 or 95."""
        return float(np.percentile(self.seconds, percentile) * 1000)


@dataclass(frozen=True)
class Runtime:
    """A multi-stage model that stops as soon as its rule says so.

    Attributes:
        model: any `MultiStageModel`.
        rule, threshold: when to leave; `NEVER` runs every stage.
        tokenizer: needed to take texts; without it, token ids only. Several for a model that reads several.
        max_length: longer texts are cut to that many word pieces.
    """

    model: MultiStageModel
    rule: Rule
    threshold: float = NEVER
    tokenizer: Tokenizers | None = None
    max_length: int = 128

    def __call__(
        self, texts: Sequence[str] | Samples, text_pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> Decision:
        """Answer texts (or already tokenised samples), in their order.

        Raises:
            InputError: no text, an empty text, or texts without a tokenizer.
        """
        samples = self._samples(texts, text_pairs)
        order = samples.lengths.argsort(stable=True)
        outcomes = [self.run(samples.batch(rows.tolist())) for rows in order.split(batch_size)]
        back = order.argsort()
        return Decision(
            torch.cat([outcome.stages for outcome in outcomes])[back],
            torch.cat([outcome.logits for outcome in outcomes])[back],
        )

    @torch.inference_mode()
    def run(self, batch: Batch) -> Decision:
        """Answer one batch."""
        model = self.model
        if model.training:
            model.eval()
        device = next(model.parameters()).device
        waiting, ids = torch.arange(len(batch.ids)), batch.ids
        stages = torch.zeros(len(batch.ids), dtype=torch.long)
        logits: Tensor | None = None
        said: list[Answer] = []
        state = model.begin(*batch.to(device).inputs)
        for stage in range(model.stages):
            state, answer = model.step(stage, state)
            said.append(_to_cpu(answer))
            evidence = self._evidence(said, ids)
            if stage == 0:
                self.rule.check(evidence, self.threshold)
                logits = torch.zeros(len(batch.ids), evidence.classes, dtype=torch.float64)
            last = stage == model.stages - 1
            # The first stage that reaches the threshold is now: whoever reached it earlier has left.
            done = torch.ones(len(ids), dtype=torch.bool) if last else self._ready(evidence)
            if done.any():
                logits[waiting[done]] = self.rule.answers(evidence)[-1, done].double()
                stages[waiting[done]] = stage
                stay = (~done).nonzero().flatten()
                if len(stay) == 0:
                    break
                waiting, ids = waiting[stay], ids[stay]
                said = [_rows(earlier, stay) for earlier in said]
                state = model.select(state, stay.to(device))
        return Decision(stages, logits)

    def measure(self, samples: Samples, batch_size: int, warm_up: int = 3, progress: bool = False) -> Timing:
        """Seconds of each batch, in order of length, after `warm_up` batches; tokenisation is not in it.

        On a GPU the device is waited for before each reading of the clock.
        """
        device = next(self.model.parameters()).device
        ready = [samples.batch(rows.tolist()) for rows in samples.lengths.argsort(stable=True).split(batch_size)]
        for batch in (ready * warm_up)[:warm_up]:
            self.run(batch)
        seconds = []
        for batch in tqdm(ready, desc=f"measuring at batch {batch_size}", disable=not progress, leave=False, delay=2):
            wait_for(device)
            start = time.perf_counter()
            self.run(batch)
            wait_for(device)
            seconds.append(time.perf_counter() - start)
        return Timing(tuple(seconds), len(samples))

    def _samples(self, texts: Sequence[str] | Samples, text_pairs: Sequence[str] | None) -> Samples:
        if isinstance(texts, Samples):
            return texts
        if isinstance(texts, str):
            raise InputError("give a list of texts; for a single text write [text]")
        if self.tokenizer is None:
            raise InputError("this runtime has no tokenizer: build it with tokenizer=..., or give tokenised samples")
        return encode(self.tokenizer, texts, text_pairs, max_length=self.max_length)

    def _ready(self, evidence: Evidence) -> Tensor:
        return self.rule.readiness(evidence)[-1].double() >= self.threshold

    def _evidence(self, said: list[Answer], ids: Tensor) -> Evidence:
        answers = stack(said)
        empty = torch.zeros(len(said), len(ids), dtype=torch.float64)
        layers = self.model.layers[: len(said)]
        return Evidence(
            answers.logits, ids, empty, empty[0], empty, layers, self.model.reference_layers, None, answers.extras
        )


def _to_cpu(answer: Answer) -> Answer:
    return Answer(answer.logits.float().cpu(), {name: tensor.float().cpu() for name, tensor in answer.extras.items()})


def _rows(answer: Answer, rows: Tensor) -> Answer:
    return Answer(answer.logits[rows], {name: tensor[rows] for name, tensor in answer.extras.items()})


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given, before the clock is read."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
