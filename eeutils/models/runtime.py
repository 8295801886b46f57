"""Stopping early for real.

After each stage the samples that are done leave the batch, and the rest is re-packed: rows that left go, and columns
that became padding for all who stay. The decisions come from the same rule as the offline sweep, so answers and
exit stages equal the simulation from evidence, sample by sample and at any batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eeutils.data.samples import Batch, Samples, Tokenizers, batches, encode
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence, Later
from eeutils.exiting.rules import NEVER, Rule
from eeutils.exiting.tradeoff import Decision
from eeutils.models.cost import Spent
from eeutils.models.stages import Answer, MultiStageModel, on_cpu, stack


@dataclass(frozen=True)
class Runtime:
    """A multi-stage model that stops as soon as its rule says so.

    Attributes:
        model: any `MultiStageModel`.
        rule, threshold: when to leave; `NEVER` runs every stage.
        tokenizer: needed to take texts; without it, token ids only. Several for a model that reads several.
        max_length: longer texts are cut to that many word pieces.

    Raises:
        InputError: a rule that has no meaning for the model's answers, that needs labels, or a threshold outside its
            range.
    """

    model: MultiStageModel
    rule: Rule
    threshold: float = NEVER
    tokenizer: Tokenizers | None = None
    max_length: int = 128

    def __post_init__(self) -> None:
        self.rule.check(self.model.classes, self.threshold)
        if self.rule.needs_labels:
            raise InputError(f"rule {self.rule.name!r} needs to know what is right; it cannot drive a runtime")

    def __call__(
        self, texts: Sequence[str] | Samples, text_pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> Decision:
        """Answer texts (or already tokenised samples), in their order.

        Raises:
            InputError: no text, an empty text, or texts without a tokenizer.
        """
        samples = self._samples(texts, text_pairs)
        order, outcomes = zip(*((rows, self.run(batch)) for rows, batch in batches(samples, batch_size)), strict=True)
        back = torch.cat(order).argsort()
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
        units, device = len(batch.ids), next(model.parameters()).device
        stages, logits = torch.zeros(units, dtype=torch.long), torch.zeros(units, model.classes, dtype=torch.float64)
        waiting, ids, inputs = torch.arange(units), batch.ids, batch.to(device).inputs
        state, reference = model.begin(*inputs), model.reference(*inputs).cpu()
        heard: list[Answer] = []
        for stage in range(model.stages):
            state, answer = model.step(stage, state)
            heard = self._hear(heard, on_cpu(answer))
            evidence = self._evidence(heard, stage, ids, reference)
            last = stage == model.stages - 1
            # The first stage that reaches the threshold is now: whoever reached it earlier has left.
            done = None if last else self._ready(evidence)
            leaving = len(ids) if done is None else sum(done.tolist())
            if leaving == 0:
                continue
            answers = self.rule.answers(evidence)[-1].double()
            if leaving == len(ids):  # nobody stays: nothing is sorted, and the batch not packed again
                logits[waiting], stages[waiting] = answers, stage
                break
            logits[waiting[done]], stages[waiting[done]] = answers[done], stage
            stay = ~done
            waiting, ids, reference = waiting[stay], ids[stay], reference.take(stay)
            heard = [_take(earlier, stay) for earlier in heard]
            state = model.leave(state, done.to(device))
        return Decision(stages, logits)

    def calls(self, samples: Samples, batch_size: int) -> list[Callable[[], Decision]]:
        """One call for each batch, in order of length, tokenisation not in it: for `timing.race`."""
        return [partial(self.run, batch) for _, batch in batches(samples, batch_size)]

    def _samples(self, texts: Sequence[str] | Samples, text_pairs: Sequence[str] | None) -> Samples:
        if isinstance(texts, Samples):
            return texts
        if isinstance(texts, str):
            raise InputError("give a list of texts; for a single text write [text]")
        if self.tokenizer is None:
            raise InputError("this runtime has no tokenizer: build it with tokenizer=..., or give tokenised samples")
        return encode(self.tokenizer, texts, text_pairs, max_length=self.max_length)

    def _ready(self, evidence: Evidence) -> Tensor:
        """Who leaves now, (N,) bool."""
        return self.rule.readiness(evidence)[-1].double() >= self.threshold

    def _hear(self, heard: list[Answer], answer: Answer) -> list[Answer]:
        """The last stages that the rule reads, each with what was spent in all by then."""
        if heard:
            answer = answer._replace(spent=heard[-1].spent.plus(answer.spent))
        return [*heard, answer][-(self.rule.reads or self.model.stages) :]

    def _evidence(self, heard: list[Answer], stage: int, ids: Tensor, reference: Spent) -> Evidence:
        answers, first = stack(heard), stage + 1 - len(heard)
        return Evidence(
            answers.logits,
            ids,
            Later(answers.spent.named),
            Later(reference.named),
            self.model.layers[first : stage + 1],
            extras=answers.extras,
            first=first,
        )


def _take(answer: Answer, rows: Tensor) -> Answer:
    extras = {name: tensor[rows] for name, tensor in answer.extras.items()}
    return Answer(answer.logits[rows], answer.spent.take(rows), extras)
