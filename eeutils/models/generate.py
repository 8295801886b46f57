"""Writing for real, token by token: each leaves as soon as the rule says so, and what it did not compute is not paid.

Rows of a batch leave at different layers. Greedy: the best word is taken. The prompt runs in full and gives the first
word; from then on a token that leaves at layer l is frozen there, and the layers above only make keys and values of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eeutils.data.prompts import encode_prompts, padded_left
from eeutils.errors import InputError
from eeutils.exiting.rules import NEVER, Rule, fixed
from eeutils.exiting.token_evidence import PLACES, TokenEvidence, short_margin, signals_of
from eeutils.models.cost import exact
from eeutils.models.decoder import Cache, Flow
from eeutils.models.token_exits import TokenExitModel
from eeutils.models.token_record import prices_of


@dataclass
class Written:
    """One text: its words, the layer at which each left, and the FLOPs spent on it after the prompt.

    `layers[0]` is L: the first word is the prompt's. `tokens` ends with the end token where it was said.
    """

    tokens: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    flops: float = 0.0
    prompt_flops: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What was written, in the order of the prompts.

    Attributes:
        texts: without the end token.
        written: tokens, layers and costs of each.
        prompt_seconds, seconds: wall-clock of reading the prompts, and of writing.
    """

    texts: list[str]
    written: list[Written]
    prompt_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Words written after the first ones, which the prompts give, for each second of writing."""
        return sum(len(one.tokens) - 1 for one in self.written) / self.seconds if self.seconds else 0.0

    @property
    def mean_layers(self) -> float:
        """Of all words but the first ones; NaN where there is none."""
        layers = [layer for one in self.written for layer in one.layers[1:]]
        return sum(layers) / len(layers) if layers else float("nan")

    @property
    def mean_flops(self) -> float:
        """FLOPs for each word after the first; NaN where there is none."""
        words = sum(len(one.tokens) - 1 for one in self.written)
        return sum(one.flops for one in self.written) / words if words else float("nan")


@dataclass(frozen=True)
class Prompted:
    """Prompts that have been read: from here several rules can write, each on a copy of the cache."""

    cache: Cache
    first: Int[Tensor, " batch"]
    numbers: Int[Tensor, " batch"]
    flops: list[float]
    seconds: float


@dataclass(frozen=True)
class Generator:
    """A decoder that stops at the layer that its rule says, for every token anew.

    Attributes:
        model: with exits.
        tokenizer: its own.
        rule, threshold: when to leave; `NEVER` is plain greedy decoding.
        shortlist: words that a rule with that look looks at.
        fills: whether the layers above a frozen token get its keys and values. Without them later tokens do not see it
            there: to be seen what that does, not to be used.

    Raises:
        InputError: a threshold outside the rule's range, or a rule that needs to know what is right.
    """

    model: TokenExitModel
    tokenizer: PreTrainedTokenizerBase
    rule: Rule = field(default_factory=fixed)
    threshold: float = NEVER
    shortlist: Int[Tensor, " words"] | None = None
    fills: bool = True

    def __post_init__(self) -> None:
        self.rule.check(self.model.classes, self.threshold)
        if self.rule.needs_labels:
            raise InputError(f"rule {self.rule.name!r} needs to know what is right; it cannot drive a generator")
        if self.rule.look == "shortlist" and self.shortlist is None:
            raise InputError(f"rule {self.rule.name!r} looks at a shortlist of words; give shortlist=...")

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 24,
        longest_prompt: int = 128,
        batch_size: int = 8,
        progress: bool = True,
    ) -> Outcome:
        """Read texts and write an answer to each, in their order.

        Args:
            texts: to be read; cut to `longest_prompt` tokens, the question not counted.
            max_new_tokens: the most that is written, end token included.
            batch_size: prompts at a time.

        Raises:
            InputError: no text, an empty one, nothing to be written, or a prompt that does not fit the model's context
                with what is to be written.
        """
        prompts = encode_prompts(self.tokenizer, texts, longest_prompt)
        return self.generate_tokens(prompts, max_new_tokens, batch_size, progress)

    def generate_tokens(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int = 8, progress: bool = False
    ) -> Outcome:
        """`generate` from token ids."""
        groups = [range(start, min(start + batch_size, len(prompts))) for start in range(0, len(prompts), batch_size)]
        bar = tqdm(groups, desc="writing", unit="batch", delay=2, leave=False, disable=not progress)
        outcomes = [
            self.write(self.read([prompts[row] for row in rows], max_new_tokens, rows.start), max_new_tokens)
            for rows in bar
        ]
        return joined(outcomes)

    def stream(self, text: str, *, max_new_tokens: int = 24, longest_prompt: int = 128) -> Iterator[tuple[str, int]]:
        """One answer while it is written: each word's text, and the layer at which it left."""
        prompt = encode_prompts(self.tokenizer, [text], longest_prompt)
        whole: list[int] = []
        for _, words, layers, _ in self._steps(self.read(prompt, max_new_tokens), max_new_tokens):
            before = self.tokenizer.decode(whole, skip_special_tokens=True)
            whole.append(int(words[0]))
            yield self.tokenizer.decode(whole, skip_special_tokens=True)[len(before) :], int(layers[0])

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, number: int = 0) -> Prompted:
        """Run the prompts, padded on the left: in full, or as the model reads; `number` is that of the first one.

        Raises:
            InputError: an empty prompt, nothing to be written, or a context that is too short.
        """
        decoder, longest = self.model.decoder, max(map(len, prompts))
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be 1 or more; got {max_new_tokens}")
        if min(map(len, prompts)) == 0:
            raise InputError("a prompt is empty; give each at least one token")
        if longest + max_new_tokens > decoder.context:
            raise InputError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit this decoder's context of "
                f"{decoder.context}; cut the prompt (longest_prompt) or write less"
            )
        started = time.perf_counter()
        ids, mask = padded_left(prompts, decoder.head_weight.device)
        cache = Cache(decoder.depth, mask, max_new_tokens, forgetful=not self.fills)
        flow, read = decoder.embed(ids, mask, cache), self.model.layers_read(ids, mask)
        for layer in range(decoder.depth):
            flow = decoder.run_layer(layer, flow, None if read is None else read > layer)
        cache.advance(longest)
        first = decoder.read(flow.states[:, -1]).argmax(dim=-1)
        seconds = time.perf_counter() - started
        numbers = torch.arange(number, number + len(prompts))
        return Prompted(cache, first, numbers, self.model.reading_flops(prompts).tolist(), seconds)

    def write(self, prompted: Prompted, max_new_tokens: int) -> Outcome:
        """Go on from prompts that have been read; they can be written on again."""
        written = [Written(prompt_flops=flops) for flops in prompted.flops]
        seconds = -time.perf_counter()
        for rows, words, layers, flops in self._steps(prompted, max_new_tokens):
            for row, word, layer, spent in zip(*map(Tensor.tolist, (rows, words, layers, flops)), strict=True):
                written[row].tokens.append(word)
                written[row].layers.append(layer)
                written[row].flops += spent
        seconds += time.perf_counter()
        texts = [self.tokenizer.decode(one.tokens, skip_special_tokens=True).strip() for one in written]
        return Outcome(texts, written, prompted.seconds, seconds)

    def _steps(self, prompted: Prompted, max_new_tokens: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Step by step: rows of the batch, their next words, the layers at which these left, and the FLOPs spent. Rows
        that have said the end are no longer there."""
        words, numbers, rows = prompted.first, prompted.numbers, torch.arange(len(prompted.first))
        cache = _copied(prompted.cache, rows)
        yield rows, words.cpu(), torch.full_like(rows, self.model.layers[-1]), torch.zeros(len(rows))
        for position in range(1, max_new_tokens):
            stay = (words != self.tokenizer.eos_token_id).nonzero().flatten()
            if len(stay) < len(words):
                if len(stay) == 0:
                    return
                words, cache = words[stay], _copied(cache, stay)
                rows, numbers = rows[stay.cpu()], numbers[stay.cpu()]
            words, stages, looks, keys = self._next(words, cache, position, numbers * PLACES + position)
            yield rows, words.cpu(), torch.tensor(self.model.layers)[stages], self._spent(stages, looks, keys)

    @torch.inference_mode()
    def _next(
        self, words: Int[Tensor, " batch"], cache: Cache, position: int, ids: Int[Tensor, " batch"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next word of each row, the stage at which it left, at how many exits it looked, and the tokens seen."""
        model, decoder, last = self.model, self.model.decoder, self.model.stages - 1
        flow = decoder.embed(words[:, None], None, cache)
        count, device = len(words), words.device
        stages, looks = torch.full((count,), last), torch.zeros(count, dtype=torch.long)
        answers, left = torch.zeros_like(words), torch.zeros(count, dtype=torch.bool)
        keys, heard = flow.keys[:, 0].cpu(), _Heard(self, ids, position, flow)
        layer = 0
        for stage, layers in enumerate(model.layers):
            active = (~left)[:, None].to(device) if left.any() else None
            while layer < layers:
                flow, layer = decoder.run_layer(layer, flow, active), layer + 1
            waiting = (~left).nonzero().flatten()
            states = flow.states[:, 0]
            if stage == last:
                answers[waiting] = model.say(stage, states[waiting]).argmax(dim=-1)
                looks[waiting] += 1
                break
            if self.threshold == NEVER:
                continue
            looks[waiting] += 1
            ready = heard.listen(stage, states, waiting)
            now = waiting[ready[waiting]]
            if len(now):
                answers[now] = heard.words(stage, states, now)
                stages[now], left[now] = stage, True
                if left.all():
                    break
        for rest in range(layer, decoder.depth):
            decoder.fill(rest, flow)
        cache.advance(1)
        return answers, stages, looks, keys

    def _spent(self, stages: Tensor, looks: Tensor, keys: Tensor) -> Tensor:
        """FLOPs of each row's step, as `TokenEvidence.priced` counts them."""
        model, prices = self.model, prices_of(self.model, 0 if self.shortlist is None else len(self.shortlist))
        layers, last = torch.tensor(model.layers)[stages], model.stages - 1
        at_exit, looked = stages < last, looks - (stages == last).long()
        spent = model.costs.layers(layers, keys) + (model.decoder.depth - layers) * (prices.fill if self.fills else 0)
        if self.rule.look == "state":
            return spent + prices.head + at_exit * prices.exit
        if self.rule.look == "shortlist":
            return spent + prices.head + looked * (prices.shortlist + prices.exit)
        return spent + looks * prices.head + looked * prices.exit


class _Heard:
    """What the stages of one step have said so far, as evidence for the rule."""

    def __init__(self, generator: Generator, ids: Tensor, position: int, flow: Flow) -> None:
        self.generator, self.ids, self.position = generator, ids, position
        self.before = self.known = flow.states[:, 0]
        self.logits: list[Tensor] = []
        self.extras: list[dict[str, Tensor]] = []
        depth = exact(torch.full((len(ids),), generator.model.reference_layers))
        self.reference = {"layers": depth, "flops": depth}

    def listen(self, stage: int, states: Tensor, waiting: Tensor) -> Bool[Tensor, " batch"]:
        """Who is ready."""
        model, rule, count = self.generator.model, self.generator.rule, len(self.ids)
        extras = {"position": torch.full((count,), float(self.position))}
        extras |= {name: value.float().cpu() for name, value in model.signals(stage, self.before, states).items()}
        logits = torch.zeros(count, 3)
        if rule.look == "head":
            some, signals = signals_of(model.say(stage, states[waiting]))
            logits[waiting] = some.cpu()
            for name, value in signals.items():
                extras[name] = torch.zeros(count, dtype=value.dtype).index_put((waiting,), value.cpu())
            self.known = extras["word"]
        elif rule.look == "shortlist":
            normed = model.decoder.norm(model.mapped(stage, states[waiting]))
            margin = short_margin(normed @ model.decoder.head_weight[self.generator.shortlist].T)
            extras["short margin"] = torch.zeros(count).index_put((waiting,), margin.cpu())
            self.known = torch.zeros_like(states).index_put((waiting.to(states.device),), normed)
        self.before = states
        held = rule.reads or model.stages
        self.logits, self.extras = [*self.logits, logits][-held:], [*self.extras, extras][-held:]
        first = stage + 1 - len(self.logits)
        layers = model.layers[first : stage + 1]
        run = exact(torch.tensor(layers))[:, None].expand(len(layers), count)
        evidence = TokenEvidence(
            torch.stack(self.logits),
            self.ids,
            {"layers": run, "flops": run},
            self.reference,
            layers,
            extras={name: torch.stack([each[name] for each in self.extras]) for name in extras},
            first=first,
        )
        return rule.readiness(evidence)[-1].double() >= self.generator.threshold

    def words(self, stage: int, states: Tensor, rows: Tensor) -> Int[Tensor, " rows"]:
        """What the exit of this stage says for some rows, after `listen`: what a look has found is not found again."""
        look, model = self.generator.rule.look, self.generator.model
        if look == "head":
            return self.known[rows].to(states.device)
        if look == "shortlist":
            return model.decoder.say_normed(self.known[rows]).argmax(dim=-1)
        return model.say(stage, states[rows]).argmax(dim=-1)


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Several batches as one."""
    return Outcome(
        [text for outcome in outcomes for text in outcome.texts],
        [one for outcome in outcomes for one in outcome.written],
        sum(outcome.prompt_seconds for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
    )


@torch.inference_mode()
def _copied(cache: Cache, rows: Tensor) -> Cache:
    return cache.take(rows)


def write_under(
    generators: Sequence[Generator],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> list[Outcome]:
    """What several rules and thresholds write, each prompt read once for all of them.

    Raises:
        InputError: generators that differ in whether they fill, for they need caches of their own.
    """
    if len({generator.fills for generator in generators}) != 1:
        raise InputError("generators that fill and such that do not cannot go on from the same prompts")
    outcomes: list[list[Outcome]] = [[] for _ in generators]
    starts = range(0, len(prompts), batch_size)
    for start in tqdm(starts, desc="writing", unit="batch", delay=2, leave=False, disable=not progress):
        read = generators[0].read(prompts[start : start + batch_size], max_new_tokens, start)
        for kept, generator in zip(outcomes, generators, strict=True):
            kept.append(generator.write(read, max_new_tokens))
    return [joined(kept) for kept in outcomes]
