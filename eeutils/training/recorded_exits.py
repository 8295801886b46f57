"""Exits that learn from recorded states: what stands below them is frozen, so no layer runs again.

The learned-exits gate holds each to a linear map: the best least-squares guess of the last layer's state from its own.
"""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from eeutils.data.samples import Batch, Samples
from eeutils.exiting.intervals import mean_interval
from eeutils.models.cost import Spent
from eeutils.models.stages import Answer, Answers, MultiStageModel
from eeutils.models.token_exits import TokenExitModel
from eeutils.training.loop import answer_loss, over_exits
from eeutils.training.probes import TOLERANCE

RIDGE = 1e-3
"""Times the mean square of a state, added to the diagonal of the least-squares problem."""


class RecordedExits(MultiStageModel):
    """The exits of a decoder below its top, on recorded states. A sample is one unit, its one token the unit's row.

    Args:
        model: whose maps are trained; its decoder is read, but is no part of this module.
        states: (S, N, D), those of the top among them or not.
    """

    def __init__(self, model: TokenExitModel, states: Float[Tensor, "stages units width"]) -> None:
        super().__init__()
        self.maps = model.maps
        self.layers, self.reference_layers, self.classes = model.layers[:-1], model.reference_layers, model.classes
        self._model, self._states = [model], states

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return input_ids[:, 0]

    def step(self, stage: int, state: Tensor) -> tuple[Tensor, Answer]:
        read = self._states[stage, state.cpu()].float().to(state.device)
        nothing = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        return state, Answer(self._model[0].say(stage, read), Spent(nothing, nothing))

    def leave(self, state: Tensor, done: Bool[Tensor, " units"]) -> Tensor:
        return state[~done]

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Spent:
        nothing = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
        return Spent(nothing, nothing)


def every_exit_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """Mode 1 of ConsistentEE: the cross entropy of every exit, deeper ones weighing more. With the decoder frozen and a
    map for each, the weights matter to nobody but clipping."""
    return over_exits(answer_loss(answers.logits, batch.labels), "depth")


def as_samples(words: Int[Tensor, " units"], padding: int) -> Samples:
    """Units as samples of one token, its row, whose label is the next word."""
    rows = torch.arange(len(words))
    return Samples(tuple((row,) for row in rows.tolist()), None, words, rows, padding)


def linear_maps(states: Float[Tensor, "stages units width"]) -> Float[Tensor, "exits width width"]:
    """For every stage but the last, the matrix that guesses the last stage's state best, by ridge regression:
    h_L ~ h_l W."""
    target = states[-1].double()
    maps = []
    for own in states[:-1]:
        read = own.double()
        square = read.T @ read
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
        maps.append(torch.linalg.solve(square + ridge, read.T @ target).float())
    return torch.stack(maps)


@torch.no_grad()
def start_from(model: TokenExitModel, maps: Float[Tensor, "exits width width"]) -> None:
    """Let the exits begin with the low-rank part of linear maps: W - I by its largest singular values."""
    for layer, matrix in zip(model.layers[:-1], maps, strict=True):
        own = model.maps[str(layer)]
        rank = own.down.out_features
        left, size, right = torch.linalg.svd(matrix.T - torch.eye(len(matrix)), full_matrices=False)
        root = size[:rank].sqrt()
        own.up.weight.copy_(left[:, :rank] * root)
        own.down.weight.copy_(root[:, None] * right[:rank])


@torch.inference_mode()
def words_of(
    model: TokenExitModel, states: Float[Tensor, "stages units width"], chunk: int = 256
) -> Int[Tensor, "stages units"]:
    """The best word of every stage, from recorded states."""
    said = [
        torch.cat([model.say(stage, part.float()).argmax(dim=-1) for part in own.split(chunk)])
        for stage, own in enumerate(states)
    ]
    return torch.stack(said)


@torch.inference_mode()
def words_of_linear(
    model: TokenExitModel,
    maps: Float[Tensor, "exits width width"],
    states: Float[Tensor, "stages units width"],
    chunk: int = 256,
) -> Int[Tensor, "exits units"]:
    """The best word of every exit, had it the whole linear map instead of its own."""
    said = [
        torch.cat([model.decoder.read(part.float() @ matrix).argmax(dim=-1) for part in own.split(chunk)])
        for matrix, own in zip(maps, states[:-1], strict=True)
    ]
    return torch.stack(said)


def learned_exits(words: pd.DataFrame) -> pd.DataFrame:
    """The gate: whether every exit says the right word as often as a whole linear map to the last state would.

    Args:
        words: as `gate_words` gives them.

    Returns:
        One row an exit below the top: layer; exit and linear, how often each is right; gap, with low and high of its
        paired interval over texts (Bonferroni's level); agrees, how often the exit says the top's word; and learned, as
        in `probes.learned_exits`.
    """
    layers = [int(name.removeprefix("linear_")) for name in words if name.startswith("linear_")]
    top = words[[name for name in words if name.startswith("exit_")][-1]]
    level, rows = 1 - 0.05 / len(layers), []
    for layer in layers:
        own, probe = ((words[f"{kind}_{layer}"] == words.right).to_numpy(float) for kind in ("exit", "linear"))
        gap = mean_interval(own - probe, level=level, groups=words.text.to_numpy())
        rows.append(
            {
                "layer": layer,
                "exit": own.mean(),
                "linear": probe.mean(),
                "gap": gap.estimate,
                "low": gap.low,
                "high": gap.high,
                "agrees": (words[f"exit_{layer}"] == top).mean(),
                "learned": gap.estimate >= -max(TOLERANCE, (gap.high - gap.low) / 2),
            }
        )
    return pd.DataFrame(rows)


def fit_judge(
    states: Float[Tensor, "stages units width"], words: Int[Tensor, "stages units"], most: int = 30_000
) -> nn.Linear:
    """CALM's classifier: one linear map for all exits, from a state to whether its exit says what the top says; both
    answers weigh alike, however rare one is.

    Args:
        states: of all stages, the top's among them.
        words: the best word of each.
        most: state and answer pairs that it learns from, spread evenly over exits and units.
    """
    right = (words[:-1] == words[-1]).flatten()
    read = states[:-1].flatten(0, 1)
    rows = torch.linspace(0, len(read) - 1, min(most, len(read))).long()
    read, right = read[rows].float().numpy(), right[rows].numpy()
    judge = nn.Linear(read.shape[1], 1)
    if right.all() or not right.any():  # nothing to be told apart
        nn.init.zeros_(judge.weight)
        nn.init.constant_(judge.bias, 4.0 if right.all() else -4.0)
        return judge
    scaler = StandardScaler().fit(read)
    fitted = LogisticRegression(class_weight="balanced", C=0.1, max_iter=300).fit(scaler.transform(read), right)
    weight = fitted.coef_[0] / scaler.scale_
    with torch.no_grad():
        judge.weight.copy_(torch.from_numpy(weight)[None])
        judge.bias.fill_(float(fitted.intercept_[0] - (weight * scaler.mean_).sum()))
    return judge
