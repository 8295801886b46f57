"""ConsistentEE for generation (Zeng et al., AAAI 2024): every word that is written leaves where a policy says.

The same idea as for sentences (`consistentee`), and the same reward, gradient and rule. A sample is now a word that is
written; what was read is none, and its last token, which gives the first word, always runs to the top. The decoder is
frozen, so the states of the training texts are recorded once and nothing below runs again:

    mode 1    every exit's cross entropy: `decoders.with_exits`, which this starts from
    ML(t)     the smallest l such that exits l .. L all say the word w_t; L if the top is wrong
    policy    pi_l = sigmoid(w_l z_l + b_l), z_l the state h_l that says w_t, standardised over the training words
    mode 2    policies alone: R(l) = -CE(w_t, p_l) - alpha (1 - ML / L) l, by REINFORCE
    mode 3    policies and the exits' maps: that plus the cross entropy of w_t at the exits drawn for it
    rule      leave at the first l with pi_l > 1/2, else at L; what stands above is made of the state that left

The authors' code for LLaMA drops the policy's term in mode 3, pairs losses with states one token apart, counts layers
from 0 and the prompt as one token, and leaves exploring to a coin: here the text above holds, and tests hold it.

    symbol   variable                    meaning
    h_l      states                      of the token BEFORE the word, after layer l
    ML       memorized                   of each word, l counted from 1
    alpha    speed_weight                what a layer costs, in nats
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eeutils.exiting.rules import policy
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.models.decoder import Decoder
from eeutils.models.generate import Generator, Outcome
from eeutils.models.token_exits import TokenExitModel
from eeutils.papers.consistentee import (
    OPERATING_POINT,
    POLICY_RATE,
    ConsistentOptions,
    memorized_layers,
    policy_loss,
    policy_network,
)
from eeutils.papers.treatments import Treatment, collapse_in
from eeutils.training import loop
from eeutils.training.decoders import (
    ExitRun,
    load_or_make,
    plain_model,
    read_weights,
    tokenizer_of,
    trained_dtype,
)
from eeutils.training.loop import Phase
from eeutils.training.recorded_policies import RecordedPolicies, as_units, recorded_words, said_of

TEXTS, BATCH, RATE, EPOCHS = 600, 64, 1e-3, 8
"""So many training texts are recorded; units in a batch; the rate of mode 1, of which mode 2's is `POLICY_RATE` times;
and epochs of mode 2, which cost seconds."""
TOGETHER = 0.1
"""Times that rate in mode 3, as in the authors' code: at the whole rate exits forget what mode 1 has taught them."""

Shape = Literal["linear", "bottleneck"]
"""Of a policy: the paper's for LLaMA, or its network for encoders, W2 gelu(W1 z)."""


class TokenPolicy(nn.Module):
    """The logit of leaving at one exit, read from its state. States of a decoder have a few directions that are longer
    than all others together, so they are standardised first: a linear map still.

    Args:
        states: (N, D) of training words, whose mean and spread are taken.
        exits_left: how many more exits follow: it begins near a probability of 1 / (exits_left + 1), so that all exits
            are tried equally often.
        shape: see `Shape`.
    """

    def __init__(self, states: Float[Tensor, "units width"], exits_left: int, shape: Shape = "linear") -> None:
        super().__init__()
        states = states.float()
        self.register_buffer("mean", states.mean(dim=0))
        self.register_buffer("spread", states.std(dim=0).clamp(min=1e-6))
        if shape == "bottleneck":
            self.network: nn.Module = policy_network(states.shape[1], exits_left)
        else:
            self.network = nn.Linear(states.shape[1], 1)
            nn.init.zeros_(self.network.weight)
            nn.init.constant_(self.network.bias, -math.log(max(exits_left, 1)))

    def forward(self, states: Float[Tensor, "*units width"]) -> Float[Tensor, "*units 1"]:
        return self.network((states.float() - self.mean) / self.spread)


class PolicyTokenModel(TokenExitModel):
    """Exits with a policy each: the extra "policy" is the probability to leave, 1 at the top, which always answers."""

    def __init__(self, decoder: Decoder, exits: Sequence[int], rank: int, policies: nn.ModuleList) -> None:
        super().__init__(decoder, exits, rank)
        self.policies = policies

    def signals(
        self, stage: int, before: Float[Tensor, "units width"], states: Float[Tensor, "units width"]
    ) -> dict[str, Tensor]:
        top = stage == self.stages - 1
        leaves = states.new_ones(len(states)) if top else self.policies[stage](states)[:, 0].sigmoid()
        return {**super().signals(stage, before, states), "policy": leaves.float()}


def learn(
    base: ExitRun, options: ConsistentOptions, shape: Shape, together: bool, work: Path, progress: bool
) -> tuple[PolicyTokenModel, pd.DataFrame]:
    """Mode 2, and mode 3 behind it if `together`, from recorded words: the model in single precision, and the history
    of its training."""
    exits, seen = base.built().eval(), recorded_words(base, "train", TEXTS, progress)
    left = range(exits.stages - 1, 0, -1)
    policies = nn.ModuleList(TokenPolicy(own, more, shape) for own, more in zip(seen.states, left, strict=False))
    model = PolicyTokenModel(exits.decoder, base.exits, base.rank, policies)
    model.maps = exits.maps
    learner = RecordedPolicies(model, policies, seen.states, seen.words, seen.said)
    alone, both = (partial(policy_loss, options, with_exits) for with_exits in (False, True))
    phases = [Phase("policy", alone, lambda model: [model.policies], epochs=EPOCHS, rate=POLICY_RATE)]
    if together:
        phases.append(Phase("policy and exits", both, epochs=1, rate=TOGETHER))
    model.decoder.requires_grad_(False)
    own = replace(base.setting, batch_size=BATCH, learning_rate=RATE)
    history = loop.fit(learner, phases, as_units(memorized_layers(seen.evidence)), own, work, progress=progress)
    return model.eval(), history


@dataclass(frozen=True)
class PolicyRun(ExitRun):
    """A decoder whose words leave by a policy, trained for one speed."""

    options: ConsistentOptions
    shape: Shape

    @cached_property
    def model(self) -> PolicyTokenModel:
        """In evaluation mode and in the arithmetic of its training; policies stay in single precision, for they take
        off means that are much larger than what is left."""
        model = self.built()
        for part in (model.decoder, model.maps):
            part.to(trained_dtype())
        return model.eval()

    def built(self) -> PolicyTokenModel:
        """A new model with the trained weights, in single precision."""
        decoder = plain_model(self.setting).decoder
        empty = torch.zeros(2, decoder.width)
        left = range(len(self.exits), 0, -1)
        policies = nn.ModuleList(TokenPolicy(empty, more, self.shape) for more in left)
        model = PolicyTokenModel(decoder, self.exits, self.rank, policies)
        read_weights(_learned_parts(model), self.directory)
        return model

    @cached_property
    def check(self) -> Treatment:
        """Whether the policy tells words apart, on dev: see `treatments.collapse`."""
        row = pd.read_csv(self.directory / "check.csv").iloc[0]
        return Treatment(f"alpha {self.options.speed_weight:g}", row.found, bool(row.took))

    def texts(self, split: str, progress: bool = True) -> Outcome:
        """What it writes on a split at the one threshold that it is meant for."""

        def writer() -> Generator:
            return Generator(self.model, tokenizer_of(self.setting), policy(), OPERATING_POINT)

        return self.written_by(split, {"policy": OPERATING_POINT}, writer, progress)


def trained(base: ExitRun, options: ConsistentOptions, shape: Shape = "linear", *, progress: bool = True) -> PolicyRun:
    """Modes 2 and 3 behind an `ExitRun`, trained when not there yet."""

    def train(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        model, history = learn(base, options, shape, True, work, progress)
        dev = recorded_words(base, "dev", progress=progress)
        evidence, _ = said_of(model, dev.states, dev.words, dev.evidence.groups)
        check = collapse_in("policy", with_policy(model, dev.states, evidence))
        tables = {
            "history": history,
            "gate-words": _gate_words(base, evidence),
            "check": pd.DataFrame({"found": [check.found], "took": [check.took]}),
        }
        return _learned_parts(model), tables

    facts = facts_of(base, shape) | {"together": TOGETHER, "options": asdict(options)}
    directory = load_or_make("decoder-policy", base.setting, facts, train)
    return PolicyRun(directory, base.setting, base.exits, base.rank, options, shape)


@torch.no_grad()
def with_policy(
    model: PolicyTokenModel, states: Float[Tensor, "stages units width"], evidence: TokenEvidence
) -> TokenEvidence:
    """Recorded evidence with what the model's policies say: extras "policy" and "policy_logit"."""
    logits = [network(own)[:, 0] for network, own in zip(model.policies, states, strict=False)]
    logits = torch.stack([*logits, torch.zeros(states.shape[1])])
    return replace(evidence, extras={**evidence.extras, "policy": logits.sigmoid(), "policy_logit": logits})


def facts_of(base: ExitRun, shape: Shape) -> dict[str, object]:
    """What decides policies besides their options."""
    of = {"texts": TEXTS, "batch": BATCH, "rate": RATE, "epochs": EPOCHS, "policy_rate": POLICY_RATE}
    return {"starts_from": base.directory.name, "shape": shape} | of


def _learned_parts(model: PolicyTokenModel) -> nn.ModuleDict:
    return nn.ModuleDict({"maps": model.maps, "policies": model.policies})


def _gate_words(base: ExitRun, evidence: TokenEvidence) -> pd.DataFrame:
    """Mode 1's table with the words that the exits say now: the linear maps that they are held to are the same."""
    words = pd.read_csv(base.directory / "gate-words.csv")
    for layer, said in zip(evidence.layers, evidence.predictions, strict=True):
        words.loc[: evidence.samples - 1, f"exit_{layer}"] = said.numpy()
    return words.iloc[: evidence.samples]
