"""Texts classified by how likely each label is, in one call of `Engine.score`, against what there is without it.

`one call per label` asks for the log-probabilities of the prompt with a label behind it, a request for each text and
label, as an engine must whose requests share nothing. `choice grammar` writes one label, any of them allowed: it
computes far less, since it follows one label only, and gives no probability of the others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from engine.generation.decoder.spec import read_spec
from engine.generation.model_files import load_tokenizer
from engine.generation.protocol import GenerationEngine
from engine.generation.scoring.trie import build_tree
from engine.values import GenerationRequest, Grammar, SamplingParams, ScoreItem, ScoreRequest
from loadtest.bench_format import OURS, Row, spread
from loadtest.closed_loop import closed_loop
from loadtest.generation.bounds import product_operations
from loadtest.generation.plan import Findings, Plan

DATA = Path(__file__).with_name("banking77.json")
CLIENTS = 32
MOST_APART = 0.1  # of a log-probability; in bfloat16 a hundredth is usual
PER_LABEL, GRAMMAR, BOUND = "one call per label", "choice grammar", "matrix product bound"
_INSTRUCTION = "Name the intent of the customer's message in a few words."

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts and labels as token ids of one model; `names` are the labels' texts."""

    prompts: tuple[Tokens, ...]
    labels: tuple[Tokens, ...]
    names: tuple[str, ...]

    @property
    def num_computed(self) -> int:
        """Tokens that a model has to read when nothing is read twice: prompts, and the tree of labels behind each."""
        return sum(map(len, self.prompts)) + len(self.prompts) * build_tree(self.labels).num_tokens

    @property
    def num_scored(self) -> int:
        """Tokens of all labels of all texts."""
        return len(self.prompts) * sum(map(len, self.labels))

    def typical(self, count: int) -> list[int]:
        """Indices of the `count` prompts nearest to the mean length, so that their rate is that of all."""
        mean = sum(map(len, self.prompts)) / len(self.prompts)
        return sorted(range(len(self.prompts)), key=lambda index: abs(len(self.prompts[index]) - mean))[:count]

    def operations(self, model: Path) -> int:
        """Floating-point operations of the matrix products for `num_computed` tokens of the checkpoint in `model`."""
        num_logits = len(self.prompts) * (1 + build_tree(self.labels).num_tokens)
        return product_operations(read_spec(model), num_tokens=self.num_computed, num_logits=num_logits)


def read_texts(model: Path, count: int, data: Path = DATA) -> Texts:
    """The first `count` committed texts and every label, in the tokens of the checkpoint in `model`."""
    raw = json.loads(data.read_text(encoding="utf-8"))
    tokenizer: Any = load_tokenizer(model)
    prompts = []
    for text in raw["texts"][:count]:
        messages = [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(tuple(tokenizer.encode(written, add_special_tokens=False)))
    labels = tuple(tuple(tokenizer.encode(name, add_special_tokens=False)) for name in raw["labels"])
    return Texts(tuple(prompts), labels, tuple(raw["labels"]))


class Classifier:
    """Three ways to classify with one engine. Each call begins with an empty prefix cache: its salt is its own."""

    def __init__(self, engine: GenerationEngine, texts: Texts) -> None:
        self._engine = engine
        self._texts = texts
        self._ids = itertools.count()

    async def score(self) -> tuple[float, list[list[float]]]:
        """One call for all. Returns seconds, and of each text the log-probability of each label."""
        items = tuple(ScoreItem(self._texts.labels, prompt_token_ids=prompt) for prompt in self._texts.prompts)
        name = self._next("score")
        started = perf_counter()
        scores = await self._engine.score(ScoreRequest(name, items, cache_salt=name))
        return perf_counter() - started, [[label.logprob for label in text] for text in scores]

    async def per_label(self, chosen: Sequence[int]) -> tuple[float, list[list[float]]]:
        """A request for each of these texts (by index) and each label, 32 at a time. Returns what `score` does."""
        found = {text: [0.0] * len(self._texts.labels) for text in chosen}
        pairs = list(itertools.product(chosen, range(len(self._texts.labels))))
        salt = self._next("salt")

        async def run(pair: tuple[int, int]) -> None:
            text, label = pair
            tokens = self._texts.labels[label]
            sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
            request = GenerationRequest(
                *(self._next("label"), ()),
                sampling=sampling,
                prompt_token_ids=self._texts.prompts[text] + tokens,
                cache_salt=salt,
            )
            async for delta in self._engine.submit(request):
                if delta.prompt is not None:
                    behind = delta.prompt.logprobs[-len(tokens) :]
                    found[text][label] = sum(token.logprob for token in behind if token is not None)

        return await closed_loop(pairs, CLIENTS, run), list(found.values())

    async def choose(self) -> float:
        """A label written for each text, 32 at a time, under a grammar that allows the labels. Returns seconds."""
        grammar = Grammar("choice", json.dumps(self._texts.names))
        salt = self._next("salt")
        longest = max(len(name.encode()) for name in self._texts.names) + 1  # it may be written byte by byte

        async def run(prompt: Tokens) -> None:
            request = GenerationRequest(
                *(self._next("choice"), ()),
                sampling=SamplingParams(max_tokens=longest),
                prompt_token_ids=prompt,
                cache_salt=salt,
                grammar=grammar,
            )
            text = "".join([delta.text async for delta in self._engine.submit(request)])
            if text not in self._texts.names:
                raise ValueError(f"the grammar allowed {text!r}, which is no label")

        return await closed_loop(self._texts.prompts, CLIENTS, run)

    def _next(self, kind: str) -> str:
        return f"classify {kind} {next(self._ids)}"


async def race(
    engine: GenerationEngine,
    model: Path,
    plan: Plan,
    found: Findings,
    console: Console,
    prefix: str = "",
) -> None:
    """For each number of texts, the three ways in turn; one call per label for a few texts only, since it takes long.

    The bound is the rate of large matrix products that `found.extra["bounds"]` holds.
    """
    for count, few in plan.classify.items():
        texts = read_texts(model, count)
        case = f"{prefix}classify {len(texts.prompts)}x{len(texts.labels)}"
        console.print(f"{case}: {plan.rounds} rounds in one call, by a call per label ({few} texts), by grammar ...")
        classifier = Classifier(engine, texts)
        chosen = texts.typical(few)
        await classifier.choose()  # compiles the grammar
        rates: dict[str, list[float]] = {OURS: [], PER_LABEL: [], GRAMMAR: []}
        for number in range(plan.rounds):
            seconds, scores = await classifier.score()
            rates[OURS].append(count / seconds)
            if number < plan.slow_rounds:
                seconds, one_by_one = await classifier.per_label(chosen)
                rates[PER_LABEL].append(few / seconds)
            rates[GRAMMAR].append(count / await classifier.choose())
        found.add_case(case, rates, metric="texts_s", unit="texts/s")
        computed = [texts.num_computed * rate / count for rate in rates[OURS]]
        flops_s = 1e12 * found.extra["bounds"]["gemm_tflop_s"]
        bound = flops_s * texts.num_computed / texts.operations(model)
        found.rows.append(Row(case, OURS, "computed_tok_s", "tokens/s", *spread(computed)))
        found.rows.append(Row(case, BOUND, "computed_tok_s", "tokens/s", *spread([bound])))
        found.rows.append(Row(case, OURS, "share_of_bound", "x", *spread([rate / bound for rate in computed])))
        found.extra.setdefault("classify", {})[case] = {
            "label tokens": texts.num_scored,
            "tokens computed": texts.num_computed,
            "tokens computed by one call per label": texts.num_scored
            + len(texts.labels) * sum(map(len, texts.prompts)),
            **agreement([scores[text] for text in chosen], one_by_one),
        }


def agreement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How far log-probabilities of [texts][labels] computed in two ways lie apart.

    The same best label counts where it is: two labels closer than the rounding may change places.
    Raises: ValueError when two differ by more than rounding, since a ratio of speeds would mean nothing then.
    """
    pairs = list(zip(ours, theirs, strict=True))
    each = [(a, b) for mine, other in pairs for a, b in zip(mine, other, strict=True)]
    for a, b in each:
        if not abs(a - b) <= MOST_APART * max(abs(b), 1.0):
            raise ValueError(f"a label has the log-probability {a:.3f} in one call and {b:.3f} in a call of its own")
    same = sum(mine.index(max(mine)) == other.index(max(other)) for mine, other in pairs)
    return {
        "largest difference in log-probability": round(max(abs(a - b) for a, b in each), 4),
        "same best label": f"{same} of {len(pairs)}",
    }
