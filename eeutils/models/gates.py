"""One encoder whose layers can be skipped, sample by sample: a gate before every layer, exits behind them.

A gate reads the state that would go into its layer and says how surely the sample should skip it. In use that is a
decision: whoever skips keeps the state, pays for the gate alone, and is not looked at by the exit of that layer; the
layer runs on the others only. In training all layers run for everybody and what they give is mixed, for a decision has
no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eeutils.errors import InputError
from eeutils.models.backbone import Backbone, Hidden
from eeutils.models.cost import Spent, exact, linear_flops
from eeutils.models.exits import Carried, Exit, ExitState, MultiExitModel, with_head
from eeutils.models.small_attention import INNER, SmallAttention
from eeutils.models.stages import Answer, Answers, MultiStageModel

THRESHOLD = 0.5
"""Who should skip with that probability or more does."""


class Gate(nn.Module):
    """sigmoid(w . attention(h)): one number a sample, the probability that it skips the layer behind this gate."""

    def __init__(self, width: int, pool: str, heads: int = 2, inner: int = INNER) -> None:
        super().__init__()
        self.attention = SmallAttention(width, heads, pool, inner)
        self.score = nn.Linear(inner, 1)

    def forward(self, hidden: Hidden) -> Float[Tensor, " batch"]:
        return self.score(self.attention(hidden.states, hidden.attention_mask))[:, 0].float().sigmoid()

    def flops(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """FLOPs for samples of that many tokens."""
        return self.attention.flops(tokens) + linear_flops(self.score)


class BlindGate(nn.Module):
    """A gate that looks at nothing and costs nothing: each sample skips with that probability, on its own.

    At 0 nobody skips, at 1 everybody does; between them a coin of torch's generator is tossed at every pass.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise InputError(f"a layer is skipped with a probability in [0, 1]; got {probability}")
        self.probability = probability

    def forward(self, hidden: Hidden) -> Float[Tensor, " batch"]:
        device = hidden.states.device
        # Only a coin that can fall on either side is tossed, so that nothing else moves the generator.
        if self.probability in (0.0, 1.0):
            return torch.full((len(hidden.tokens),), self.probability, device=device)
        return (torch.rand(len(hidden.tokens), device=device) < self.probability).float()

    def flops(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Nothing."""
        return exact(torch.zeros_like(tokens))


@dataclass(frozen=True)
class GatedState:
    """The hidden states; what the last exit that was asked said of each sample, zeros where none was; and what
    training carries from stage to stage."""

    hidden: Hidden
    spoken: Float[Tensor, "batch classes"]
    carried: Carried = field(default_factory=dict)


class Passed(NamedTuple):
    """What came of one gate and its layer.

    Attributes:
        hidden: the state of everybody after the layer, or in front of it for those who skip.
        output: what the layer gave: to those who ran it, or to everybody in training.
        rows: (R,) who stands in `output`.
        gate: (B,) the probability to skip.
        weight: (B,) how much of the state before the layer stays: 0 or 1, or between them where weights are soft.
    """

    hidden: Hidden
    output: Hidden
    rows: Int[Tensor, " rows"]
    gate: Float[Tensor, " batch"]
    weight: Float[Tensor, " batch"]


class GatedModel(MultiStageModel):
    """One encoder with a gate before every layer and exits on some or all of them.

    Extras of each stage: "gate" (B,), the probability to skip the stage's last layer, and "skipped" (B,), whether that
    was done. Where it was, the logits are those of the last exit that was asked (zeros where none was): nobody has said
    anything since. The last exit always answers, on whatever the state is.

    Args:
        backbone: the encoder.
        exits: layer (from 1) -> exit, the last layer's included.
        gates: one for each layer; `Gate` or `BlindGate`.
        soft_passes: so many passes in training, as long as the encoder is trained, mix with the probability itself.
            Later ones decide, and the gradient of the decision is taken to be that of the probability (straight
            through).
        threshold: of the decision.

    Raises:
        InputError: not a gate for each layer, or no exit on the last one.
    """

    def __init__(
        self,
        backbone: Backbone,
        exits: Mapping[int, Exit],
        gates: Sequence[nn.Module],
        *,
        soft_passes: int = 0,
        threshold: float = THRESHOLD,
    ) -> None:
        super().__init__()
        if len(gates) != backbone.depth or max(exits, default=0) != backbone.depth:
            raise InputError(
                f"an encoder of {backbone.depth} layers needs as many gates and an exit on its last layer; got "
                f"{len(gates)} gates and exits on layers {sorted(exits)}"
            )
        self.backbone, self.gates = backbone, nn.ModuleList(gates)
        self.layers = tuple(sorted(exits))
        self.reference_layers = backbone.depth
        self.classes = exits[backbone.depth].classifier.out_features
        self.exits = nn.ModuleDict({str(layer): exits[layer] for layer in self.layers})
        self.soft_passes, self.threshold, self.dense = soft_passes, threshold, False
        # Saved with the weights: a training that was interrupted goes on where it was.
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def exit_at(self, stage: int) -> Exit:
        """The exit of stage number `stage` (from 0, or from the end if negative)."""
        return self.exits[str(self.layers[stage])]

    @property
    def shaping(self) -> bool:
        """Whether the encoder is what is being trained, and not its exits alone."""
        return self.training and any(parameter.requires_grad for parameter in self.backbone.parameters())

    def with_gates(
        self, gates: Sequence[nn.Module], *, only_last_exit: bool = False, threshold: float = THRESHOLD
    ) -> GatedModel:
        """The same encoder and exits (or the last one alone) behind other gates, in evaluation mode."""
        layers = self.layers[-1:] if only_last_exit else self.layers
        exits = {layer: self.exits[str(layer)] for layer in layers}
        return GatedModel(self.backbone, exits, gates, threshold=threshold).to(self.passes.device).eval()

    def forward(self, *inputs: Tensor | None) -> Answers:
        answers = super().forward(*inputs)
        if self.shaping:
            self.passes += 1
        return answers

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> GatedState:
        hidden = self.backbone.embed(input_ids, attention_mask, token_type_ids)
        return GatedState(hidden, torch.zeros(len(input_ids), self.classes, device=input_ids.device))

    def step(self, stage: int, state: GatedState) -> tuple[GatedState, Answer]:
        hidden, head = state.hidden, self.exit_at(stage)
        for layer in range(self.layers[stage - 1] if stage else 0, self.layers[stage]):
            before, passed = hidden, self._pass(layer, hidden)
            hidden = passed.hidden
        skipped, last = passed.gate >= self.threshold, stage == self.stages - 1
        # An exit reads what its layer gave, the last one whatever the state is.
        read, rows = passed.output, passed.rows
        if last:
            read, rows = hidden, torch.arange(len(hidden.tokens), device=hidden.tokens.device)
        spoken = state.spoken
        if len(rows):
            vector, _ = head.read(ExitState(read, read))
            logits, _ = head.answer(vector)
            spoken = logits if len(rows) == len(spoken) else spoken.index_put((rows,), logits.to(spoken.dtype))
        asked = torch.ones_like(skipped) if last else ~skipped
        spent = hidden.spent.minus(state.hidden.spent) if stage else hidden.spent
        spent = Spent(spent.layers, spent.flops + asked * head.flops(hidden.tokens))
        extras = {"gate": passed.gate, "skipped": skipped.float()}
        carried = state.carried
        if self.training:
            carried, more = self.watch(stage, before, passed.output, carried)
            extras |= {"weight": passed.weight, **more}
        return GatedState(hidden, spoken, carried), Answer(spoken, spent, extras)

    def watch(self, stage: int, before: Hidden, output: Hidden, carried: Carried) -> tuple[Carried, dict[str, Tensor]]:
        """What an objective needs beside the answers, in training only: what to carry to the next stage, and extras.

        Args:
            stage: its number.
            before, output: the state in front of the stage's last layer, and what the layer gave to everybody.
            carried: by the stages before.
        """
        return carried, {}

    def leave(self, state: GatedState, done: Bool[Tensor, " batch"]) -> GatedState:
        rows = (~done).nonzero().flatten()
        return GatedState(self.backbone.take(state.hidden, rows), state.spoken[rows])

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Spent:
        return with_head(self.backbone.whole_pass(attention_mask, self.reference_layers), self.exit_at(-1))

    def _pass(self, layer: int, hidden: Hidden) -> Passed:
        """Ask the gate of layer number `layer` (from 0), and run the layer."""
        gate = self.gates[layer](hidden)
        asked = Spent(torch.zeros_like(hidden.spent.layers), self.gates[layer].flops(hidden.tokens))
        hidden = replace(hidden, spent=hidden.spent.plus(asked))
        skips = gate >= self.threshold
        if self.training or self.dense:
            return self._mix(layer, hidden, gate, skips)
        rows = (~skips).nonzero().flatten()
        if len(rows) == 0:
            return Passed(hidden, hidden, rows, gate, skips.float())
        # Those who run the layer are a batch of their own: no key and no value is made for the others.
        whole = len(rows) == len(skips)
        output = self.backbone.run_layer(layer, hidden if whole else self.backbone.take(hidden, rows))
        after = output if whole else _put_back(hidden, rows, output)
        return Passed(after, output, rows, gate, skips.float())

    def _mix(self, layer: int, hidden: Hidden, gate: Tensor, skips: Tensor) -> Passed:
        output, weight = self.backbone.run_layer(layer, hidden), skips.float()
        if self.shaping:
            soft = int(self.passes) < self.soft_passes
            weight = gate if soft else gate + (weight - gate).detach()
        stays = weight[:, None, None].to(output.states.dtype)
        spent = Spent(*(torch.where(skips, kept, run) for kept, run in zip(hidden.spent, output.spent, strict=True)))
        mixed = replace(output, states=(1 - stays) * output.states + stays * hidden.states, spent=spent)
        return Passed(mixed, output, torch.arange(len(skips), device=skips.device), gate, weight)


class AsTrained(MultiExitModel):
    """A gated model with every layer and exit run for everybody, as its exits are trained: for probes on what these
    read. What a sample is charged stays what it would cost in use."""

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model.backbone, {layer: model.exits[str(layer)] for layer in model.layers})
        self.model = model.with_gates(list(model.gates), threshold=model.threshold)
        self.model.dense = True
        self.eval()

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> GatedState:
        return self.model.begin(input_ids, attention_mask, token_type_ids)

    def step(self, stage: int, state: GatedState) -> tuple[GatedState, Answer]:
        return self.model.step(stage, state)

    def leave(self, state: GatedState, done: Bool[Tensor, " batch"]) -> GatedState:
        return self.model.leave(state, done)


def _put_back(hidden: Hidden, rows: Int[Tensor, " rows"], output: Hidden) -> Hidden:
    """The state of all, those who ran the layer after it and the others in front of it."""
    columns = hidden.attention_mask[rows].any(dim=0).nonzero().flatten()
    states = hidden.states.index_put((rows[:, None], columns), output.states.to(hidden.states.dtype))
    pairs = zip(hidden.spent, output.spent, strict=True)
    return replace(hidden, states=states, spent=Spent(*(all_.index_put((rows,), ran) for all_, ran in pairs)))
