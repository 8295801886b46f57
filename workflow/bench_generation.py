"""What writing early costs and gains, measured against transformers' own `generate`: rows of the bench.

The decoder is not fine-tuned, its exits are untrained, and a coin says which word leaves: time and memory do not depend
on what was learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from eeutils.data.samples import Samples
from eeutils.exiting.rules import NEVER, Rule, fixed, random
from eeutils.models.decoder import load_decoder
from eeutils.models.generate import Generator
from eeutils.models.timing import race, ratio
from eeutils.models.tiny import tiny_decoder
from eeutils.models.token_exits import TokenExitModel
from eeutils.models.token_record import record_tokens
from eeutils.papers.controls.writing_clocks import transformers_way, way_of
from eeutils.training.loop import best_device
from workflow.rows import Row, in_fresh_process, peak_resident_bytes, row

DECODER = "smollm2-135m"
LEAVE = 0.5
"""The coin: of the words that come to an exit, so many leave."""


@dataclass(frozen=True)
class Size:
    """How much is measured: prompts and tokens of each; tokens of evidence, and of each text of them."""

    prompts: int
    tokens: int
    evidence: int
    text: int


FULL, QUICK = Size(8, 100, 10_000, 250), Size(2, 8, 200, 50)


class Endless(PreTrainedTokenizerBase):
    """In a tokenizer's place: no word is the end, so that every way writes equally many. Tokens are not made text."""

    eos_token_id, pad_token_id = -1, 0

    def __init__(self) -> None:
        """Without a vocabulary."""

    def decode(self, tokens: list[int], **_: object) -> str:
        return ""


def generation(rounds: int, quick: bool = False) -> list[Row]:
    """The rows; `quick` on a tiny decoder, where the figures mean nothing."""
    name, size = (str(tiny_decoder()), QUICK) if quick else (DECODER, FULL)
    added = in_fresh_process(evidence_bytes, name, size) / 1e6
    about = f"{size.evidence} tokens, an exit on every third layer; the decoder itself not included"
    what = f"peak memory, token evidence of {FULL.evidence:,} tokens"
    return [*writing_speed(build(name), rounds, size), Row(what, round(added, 1), "MB", about, "<= 1000")]


def build(name: str) -> TokenExitModel:
    """The decoder with an exit on every third layer, untrained."""
    decoder = load_decoder(name)
    return TokenExitModel(decoder, exits=range(3, decoder.depth, 3)).to(best_device()).eval()


def writing_speed(model: TokenExitModel, rounds: int, size: Size) -> list[Row]:
    """Our generator against transformers' at batch 1: what it costs where no word leaves, and how much of the FLOPs
    saved is time saved where some do."""
    prompts = random_tokens(model, size.prompts, size.tokens)
    depth = model.decoder.depth
    # Few exits, far apart: every one that is passed costs a look.
    few = model.only([layer for layer in model.layers if layer in (depth // 3, 2 * depth // 3)])
    never, early = generator(few, fixed(), NEVER), generator(few, random(), 1 - LEAVE)
    ways = {"transformers": transformers_way(model, Endless()), "never": way_of(never), "early": way_of(early)}
    tracks = {name: [lambda way=way, prompt=prompt: way(prompt) for prompt in prompts] for name, way in ways.items()}
    flops = {name: flops_of(each, prompts) for name, each in (("never", never), ("early", early))}
    seconds = race(tracks, rounds, best_device(), "generation, batch 1")
    theory, speedup = flops["never"] / flops["early"], ratio(seconds, "transformers", "early")
    each = f"{1000 * np.median(seconds['transformers']):.0f} ms a text by transformers"
    prompted = f"prompts of {size.tokens} tokens, batch 1"
    return [
        row(
            f"generation, overhead when no word leaves, {prompted}",
            100 * (ratio(seconds, "never", "transformers") - 1),
            "<= 5",
            each,
            unit="%",
        ),
        row(
            f"generation, realised over FLOPs speed-up, {prompted}",
            speedup / theory,
            ">= 0.9",
            f"{np.median(speedup):.2f} of {theory:.2f}, reading included; {each}",
        ),
    ]


def generator(model: TokenExitModel, rule: Rule, threshold: float) -> Generator:
    """One that writes on whatever is said."""
    return Generator(model, Endless(), rule, threshold)


def flops_of(generator: Generator, prompts: list[list[int]]) -> float:
    """What reading all prompts and writing on from them spends."""
    outcomes = [way_of(generator)(prompt) for prompt in prompts]
    return sum(one.flops + one.prompt_flops for outcome in outcomes for one in outcome.written)


def random_tokens(model: TokenExitModel, texts: int, length: int) -> list[list[int]]:
    """Token ids at random."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.decoder.vocabulary, (texts, length), generator=generator).tolist()


def evidence_bytes(name: str, size: Size) -> int:
    """Peak memory of recording so many tokens, above that of imports and of the decoder's own weights. What loading
    takes for a while counts too, if it is more."""
    before = peak_resident_bytes()
    model = build(name)
    record_tokens(model, texts(model, size.evidence // size.text, size.text))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes() - before
    return peak - sum(weight.numel() * weight.element_size() for weight in model.parameters())


def texts(model: TokenExitModel, count: int, units: int) -> Samples:
    """Texts of so many units each: words behind a prompt of four tokens, but for the first, which the prompt gives."""
    tokens = tuple(map(tuple, random_tokens(model, count, 5 + units)))
    types = tuple((0,) * 4 + (1,) * (1 + units) for _ in range(count))
    return Samples(tokens, types, torch.zeros(count, dtype=torch.long), torch.arange(count), padding=0)
