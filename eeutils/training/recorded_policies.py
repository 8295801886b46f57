"""Policies and exits that learn from recorded states: no layer of the decoder runs again.

Whether a word is right is all that a policy is paid for, so of an exit's answer two numbers are kept: the logit of the
right word, and the log-sum-exp of those of all others. Their cross entropy is that of the whole answer, and so is its
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eeutils.data.samples import Samples
from eeutils.exiting.evidence import KINDS
from eeutils.exiting.token_evidence import TokenEvidence, signals_of
from eeutils.models.cost import Spent
from eeutils.models.stages import Answer, MultiStageModel
from eeutils.models.token_exits import TokenExitModel
from eeutils.models.token_record import prices_of
from eeutils.training.decoders import TEXTS, ExitRun, written_states
from eeutils.training.recorded_exits import as_samples
from eeutils.training.runs import as_trained

RIGHT = 0
"""The class of the right word, of the two that are told apart."""
SELDOM = 0.01
"""Where a word leaves less often than that, what was recorded of the exit stands in for what its map says now, without
a gradient: a look through the head is what training pays for, and most exits are out of the question for most words."""


def right_or_not(logits: Float[Tensor, "units words"], words: Int[Tensor, " units"]) -> Float[Tensor, "units 2"]:
    """The logit of each unit's right word, and the log-sum-exp of all others."""
    right = logits.gather(1, words[:, None])
    others = logits.scatter(1, words[:, None], -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([right, others], dim=1)


@dataclass(frozen=True)
class Asked:
    """Units that are asked: their rows, and how probable it is that they have passed all exits so far."""

    rows: Int[Tensor, " units"]
    passed: Float[Tensor, " units"]


class RecordedPolicies(MultiStageModel):
    """The exits of a decoder and a policy at each, on recorded states. A sample is one unit, its one token the unit's
    row, its label `RIGHT`.

    Extras: "policy_logit" (B,), of leaving; 0 at the top, where nobody asks.

    Args:
        model: its maps, if they are to learn; its decoder is read, but is no part of this module.
        policies: one module for each exit below the top: states (B, D) -> logits (B, 1).
        states: (S, N, D), those of the top among them.
        words: (N,), the right ones.
        said: (S, N, 2), what the exits said when training began: read while the maps are frozen, at the top, and where
            words leave `SELDOM`.
    """

    def __init__(
        self,
        model: TokenExitModel,
        policies: nn.ModuleList,
        states: Float[Tensor, "stages units width"],
        words: Int[Tensor, " units"],
        said: Float[Tensor, "stages units 2"],
    ) -> None:
        super().__init__()
        self.policies, self.maps = policies, model.maps
        self.layers, self.reference_layers, self.classes = model.layers, model.reference_layers, 2
        self._model, self._states, self._words, self._said = [model], states, words, said

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Asked:
        return Asked(input_ids[:, 0], torch.ones(len(input_ids), device=input_ids.device))

    def step(self, stage: int, state: Asked) -> tuple[Asked, Answer]:
        rows, device, top = state.rows.cpu(), state.rows.device, stage == self.stages - 1
        read, said = self._states[stage, rows].float().to(device), self._said[stage, rows].to(device)
        leaves = said.new_zeros(len(said)) if top else self.policies[stage](read)[:, 0].float()
        here = leaves.detach().sigmoid()
        if not top and next(self.maps.parameters()).requires_grad:
            asked = (state.passed * here >= SELDOM).nonzero()[:, 0]
            words = self._words[rows].to(device)[asked]
            said = said.index_put((asked,), right_or_not(self._model[0].say(stage, read[asked]).float(), words))
        nothing = torch.zeros(len(said), dtype=torch.float64, device=device)
        after = Asked(state.rows, state.passed * (1 - here))
        return after, Answer(said, Spent(nothing, nothing), {"policy_logit": leaves})

    def leave(self, state: Asked, done: Bool[Tensor, " units"]) -> Asked:
        return Asked(state.rows[~done], state.passed[~done])

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Spent:
        nothing = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
        return Spent(nothing, nothing)


def as_units(memorized: Int[Tensor, " units"]) -> Samples:
    """Units as samples for `RecordedPolicies`, each with the note "memorized_layer"."""
    samples = as_samples(torch.full_like(memorized, RIGHT), 0)
    return samples.with_notes(memorized_layer=(samples.ids, memorized))


@dataclass(frozen=True)
class RecordedWords:
    """Words of some texts and what the exits of a run say of them, all tokens running all layers.

    Attributes:
        states: (S, N, D), those that say the words.
        words: (N,) that stand there.
        evidence, said: as `said_of` gives them.
    """

    states: Float[Tensor, "stages units width"]
    words: Int[Tensor, " units"]
    evidence: TokenEvidence
    said: Float[Tensor, "stages units 2"]


@lru_cache(maxsize=4)
def recorded_words(run: ExitRun, split: str, texts: int = TEXTS, progress: bool = True) -> RecordedWords:
    """The words of a split's first texts that may leave early, recorded once in this process."""
    model = run.built().eval()
    states, words, of_texts = written_states(model, run.setting, split, progress, texts)
    return RecordedWords(states, words, *said_of(model, states, words, of_texts))


@torch.inference_mode()
def said_of(
    model: TokenExitModel,
    states: Float[Tensor, "stages units width"],
    words: Int[Tensor, " units"],
    texts: Int[Tensor, " units"],
    chunk: int = 256,
) -> tuple[TokenEvidence, Float[Tensor, "stages units 2"]]:
    """What the exits say of recorded units, keys and values exact: evidence, its FLOPs those of layers that see no
    other token (texts are short, so that tells speeds apart well enough to choose by), and `right_or_not`."""
    logits, extras, said = [], [], []
    for stage in range(model.stages):
        with as_trained(model.decoder.head_weight.device):
            parts = [model.say(stage, part.float()).float() for part in states[stage].split(chunk)]
        pieces = [signals_of(part, right) for part, right in zip(parts, words.split(chunk), strict=True)]
        logits.append(torch.cat([kept for kept, _ in pieces]))
        extras.append({name: torch.cat([extra[name] for _, extra in pieces]).float() for name in pieces[0][1]})
        said.append(torch.cat([right_or_not(part, own) for part, own in zip(parts, words.split(chunk), strict=True)]))
    run = torch.tensor(model.layers, dtype=torch.float64)[:, None].expand(-1, len(words))
    body = model.costs.layers(run, torch.zeros(1))
    named = {name: torch.stack([extra[name] for extra in extras]) for name in extras[0]}
    reference = {"layers": run[-1], "flops": body[-1] + model.costs.head}
    evidence = TokenEvidence(
        torch.stack(logits),
        torch.arange(len(words)),
        dict(zip(KINDS, (run, body), strict=True)),
        reference,
        model.layers,
        words,
        named | {"layers": body},
        texts,
        prices=prices_of(model),
    )
    return evidence.priced("state"), torch.stack(said)
