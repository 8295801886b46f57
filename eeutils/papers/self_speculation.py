"""LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding (Elhoushi et al., ACL 2024): its inference.

The first E layers and their exit draft some words; the whole model then verifies them in one pass, keeps those that it
would have said, and adds one of its own. The text is the full model's, word for word. The draft's keys, values and
states are kept, so verification runs the upper layers only, on several tokens at once: where reading weights is what
takes time, that costs little more than one token. It saves time, never FLOPs.

    draft     w_{t+1} = argmax exit_E(h_E), gamma times
    verify    the longest beginning of the draft on which layers E+1 .. L agree, and the full model's word behind it
    speed-up  (L + head)(a + 1) / (gamma (E + head) + L + head) where time goes with the weights that are read

    symbol   variable     meaning
    E        layer        the layer that drafts
    gamma    draft        words drafted at a time
    a        accepted     drafted words kept, a round
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eeutils.errors import InputError
from eeutils.exiting.rules import NEVER
from eeutils.models.decoder import Cache
from eeutils.models.generate import Generator
from eeutils.models.token_exits import TokenExitModel


@dataclass(frozen=True)
class Speculated:
    """What came out: words of each text, the end included; rounds, words drafted and words of the draft that were
    kept; and the seconds of writing, prompts not counted."""

    tokens: list[list[int]]
    rounds: int
    drafted: int
    accepted: int
    seconds: float

    @property
    def acceptance(self) -> float:
        """Share of drafted words that were kept; 0 where none was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_second(self) -> float:
        """As `Outcome.tokens_per_second`."""
        return sum(len(one) - 1 for one in self.tokens) / self.seconds if self.seconds else 0.0


@torch.inference_mode()
def speculate(
    model: TokenExitModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    layer: int,
    draft: int,
    *,
    progress: bool = False,
) -> Speculated:
    """Write on from prompts, one at a time.

    Args:
        layer: E, one with an exit.
        draft: gamma.

    Raises:
        InputError: a layer without an exit, or a draft of no word.
    """
    if layer not in model.layers[:-1]:
        raise InputError(f"layer {layer} has no exit to draft with; choose one of {list(model.layers[:-1])}")
    if draft < 1:
        raise InputError(f"a draft has 1 word or more; got {draft}")
    plain, end = Generator(model, tokenizer, threshold=NEVER), tokenizer.eos_token_id
    texts, rounds, drafted, accepted, seconds = [], 0, 0, 0, 0.0
    for prompt in tqdm(prompts, desc="speculating", delay=2, leave=False, disable=not progress):
        read = plain.read([prompt], max_new_tokens + draft + 1)
        started, cache, words = time.perf_counter(), read.cache, [int(read.first)]
        while words[-1] != end and len(words) < max_new_tokens:
            guesses, states = _draft(model, cache, words[-1], layer, min(draft, max_new_tokens - len(words)), end)
            verified = _verify(model, cache, [words[-1], *guesses], states, layer)
            agreed = 0
            while agreed < len(guesses) and guesses[agreed] == verified[agreed]:
                agreed += 1
            # Columns behind what was agreed on are written over by the next round.
            cache.advance(agreed + 1)
            rounds, drafted, accepted = rounds + 1, drafted + len(guesses), accepted + agreed
            words += verified[: agreed + 1]
        seconds += time.perf_counter() - started
        words = words[:max_new_tokens]
        texts.append(words[: words.index(end) + 1] if end in words else words)
    return Speculated(texts, rounds, drafted, accepted, seconds)


def _draft(
    model: TokenExitModel, cache: Cache, word: int, layer: int, count: int, end: int
) -> tuple[list[int], Tensor]:
    """Drafted words, and the states after layer E of the first word and of all of them, (1, words, D)."""
    decoder, stage, start = model.decoder, model.layers.index(layer), cache.length
    guesses, states = [], []
    for number in range(count + 1):
        flow = decoder.embed(torch.tensor([[word]], device=decoder.head_weight.device), None, cache)
        for below in range(layer):
            flow = decoder.run_layer(below, flow)
        cache.advance(1)
        states.append(flow.states)
        if number == count or word == end:
            break
        word = int(model.say(stage, flow.states[0, -1]).argmax())
        guesses.append(word)
    cache.crop(start)
    return guesses, torch.cat(states, dim=1)


def _verify(model: TokenExitModel, cache: Cache, words: list[int], states: Tensor, layer: int) -> list[int]:
    """What the full model says behind each of the words, from their states after layer E."""
    decoder = model.decoder
    flow = decoder.embed(torch.tensor([words], device=states.device), None, cache)
    flow = replace(flow, states=states)
    for above in range(layer, decoder.depth):
        flow = decoder.run_layer(above, flow)
    return decoder.read(flow.states[0]).argmax(dim=-1).tolist()


def bound(layers: int, head: float, layer: int, draft: int) -> float:
    """How many words of a draft must be kept for any gain, if time goes with the weights that are read; all in units of
    one layer."""
    return (draft * (layer + head) + layers + head) / (layers + head) - 1
