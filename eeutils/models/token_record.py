"""Passes of a decoder over texts that are given (teacher forcing), kept as evidence of their tokens.

Without a rule all tokens run all layers: one pass serves all thresholds, *if* the keys and values of tokens that leave
were exact. With copied states they are not: what a token sees depends on where earlier ones left. So with a rule it is
one pass for one threshold, layer by layer, and the tokens that have left are frozen. That pass gives the same states
as decoding the same text token by token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eeutils.data.samples import Batch, Samples, batches
from eeutils.exiting.evidence import KINDS, concatenate
from eeutils.exiting.rules import NEVER, Rule
from eeutils.exiting.token_evidence import PLACES, TokenEvidence, TokenPrices, signals_of
from eeutils.models.token_exits import TokenExitModel, next_words


@torch.inference_mode()
def record_tokens(
    model: TokenExitModel,
    samples: Samples,
    rule: Rule | None = None,
    threshold: float = NEVER,
    *,
    shortlist: Int[Tensor, " words"] | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> TokenEvidence:
    """What every stage says of every word but the first, which the prompt gives and which never leaves early.

    Args:
        model: in evaluation mode.
        samples: with token types, 1 on what is to be written; labels are the words that stand there.
        rule, threshold: freeze each token where it leaves. What later stages then say of it is no evidence, and
            `tradeoff.decide` with the same rule and threshold does not read it.
        shortlist: words for the extra "short margin".

    Returns:
        Evidence priced by the rule's look, by "head" without a rule.

    Raises:
        InputError: a threshold outside the rule's range.
    """
    if rule is not None:
        rule.check(model.classes, threshold)
    device, prices = next(model.parameters()).device, prices_of(model, 0 if shortlist is None else len(shortlist))
    parts = []
    for _, batch in batches(samples, batch_size, progress="recording tokens" if progress else None):
        parts.append(_pass(model, batch.to(device), rule, threshold, shortlist, prices))
    order = torch.cat([part.ids for part in parts]).sort().values
    return concatenate(parts, order).priced("head" if rule is None else rule.look)


def prices_of(model: TokenExitModel, words: int = 0) -> TokenPrices:
    """What a model's tokens spend besides their layers; `words` are those of a shortlist."""
    costs = model.costs
    return TokenPrices(float(costs.head), float(costs.shortlist(words)), float(costs.fill), float(costs.exit))


def _pass(
    model: TokenExitModel,
    batch: Batch,
    rule: Rule | None,
    threshold: float,
    shortlist: Tensor | None,
    prices: TokenPrices,
) -> TokenEvidence:
    types = batch.token_type_ids
    state = model.begin(*batch.inputs)
    # The last token of a prompt is a unit too, for it gives the first word; it runs all layers.
    written = (types[state.units] == 1).cpu()
    rows = state.units.nonzero()[:, 0].cpu()
    position = (types.cumsum(dim=1)[state.units]).cpu()
    labels, reference = next_words(batch.input_ids, types), model.reference(*batch.inputs).cpu()
    ids = batch.ids.cpu()[rows] * PLACES + position
    said, kept, layers = [], [], []
    left = ~written
    for stage in range(model.stages):
        state, answer = model.step(stage, state)
        logits, extras = signals_of(answer.logits, labels, shortlist)
        own = answer.spent.flops - model.costs.head - (model.costs.exit if stage < model.stages - 1 else 0)
        said.append(logits.cpu())
        layers.append(own.cpu())
        kept.append({name: value.cpu() for name, value in {**extras, **answer.extras}.items()} | {"position": position})
        if rule is not None and stage < model.stages - 1:
            heard = _evidence(model, said, kept, layers, ids, reference, prices)
            now = (rule.readiness(heard)[-1].double() >= threshold) & ~left
            left = left | now
            if now.any():
                state = model.leave(state, now.to(logits.device))
    whole = _evidence(model, said, kept, layers, ids, reference, prices)
    return replace(whole.take(written), labels=labels.cpu()[written], groups=batch.ids.cpu()[rows][written])


def _evidence(
    model: TokenExitModel,
    said: list[Tensor],
    kept: list[dict[str, Tensor]],
    layers: list[Tensor],
    ids: Tensor,
    reference: object,
    prices: TokenPrices,
) -> TokenEvidence:
    extras = {name: torch.stack([stage[name].float() for stage in kept]) for name in kept[0]}
    body = torch.stack(layers).cumsum(dim=0)
    run = torch.tensor(model.layers[: len(said)], dtype=torch.float64)[:, None].expand_as(body)
    return TokenEvidence(
        torch.stack(said),
        ids,
        dict(zip(KINDS, (run, body), strict=True)),
        reference.named(),
        model.layers[: len(said)],
        extras=extras | {"layers": body},
        prices=prices,
    )


@torch.inference_mode()
def record_states(
    model: TokenExitModel, samples: Samples, batch_size: int = 16, progress: bool = False
) -> tuple[Float[Tensor, "stages units width"], Int[Tensor, " units"], Int[Tensor, " units"], Bool[Tensor, " units"]]:
    """The states of all units at all stages from ONE pass, in half precision, for exits that are learned afterwards.

    Returns:
        States; the words that stand behind the units; the texts' ids; and which units may leave, that is all but
        those that give a first word.
    """
    device = next(model.parameters()).device
    states, words, texts, written = [], [], [], []
    for _, batch in batches(samples, batch_size, progress="recording states" if progress else None):
        batch = batch.to(device)
        state, by_stage = model.begin(*batch.inputs), []
        for stage in range(model.stages):
            state = model.run_to(stage, state)
            by_stage.append(state.flow.states[state.units].to(torch.bfloat16).cpu())
        states.append(torch.stack(by_stage))
        words.append(next_words(batch.input_ids, batch.token_type_ids).cpu())
        texts.append(batch.ids.cpu()[state.units.nonzero()[:, 0].cpu()])
        written.append((batch.token_type_ids[state.units] == 1).cpu())
    return torch.cat(states, dim=1), torch.cat(words), torch.cat(texts), torch.cat(written)
