"""Answers with a grammar: always valid, unchanged where the free answer was, and no matter to anybody else."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from transformers import AutoTokenizer

from engine.config import GeneratorSettings
from engine.errors import InvalidGrammar, InvalidRequest
from engine.generation.engine import Engine
from engine.generation.grammar import compiler as compiling
from engine.generation.grammar.compiler import GrammarCompiler
from engine.generation.grammar.compiler import _build as build
from engine.values import GenerationRequest, Grammar, Message, SamplingParams, TokenDelta

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=1024, kv_tokens=8192)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["new", "old"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = Engine(tiny_model, SETTINGS)
    yield engine
    engine.close()


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def choice(*texts: str) -> Grammar:
    return Grammar("choice", json.dumps(texts))


def request(name: str, grammar: Grammar | None, text: str = "How do I cancel?", **sampling: Any) -> GenerationRequest:
    params = SamplingParams(**({"max_tokens": 200} | sampling))
    return GenerationRequest(name, (Message("user", text),), sampling=params, grammar=grammar)


async def answer(engine: Engine, asked: GenerationRequest) -> tuple[str, str | None, list[TokenDelta]]:
    deltas = [delta async for delta in engine.submit(asked)]
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason, deltas


# Bounded in every part, so that an answer always finds its end.
SCALARS = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -20, "maximum": 3000},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-c]{2,4}$"},
        {"enum": ["x", 3, None, 'a"b\\']},
        {"const": {"k": [1, "é"]}},
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "long name", "ü"])
    return st.dictionaries(names, inner, max_size=3).flatmap(
        lambda properties: st.sampled_from(
            [
                {
                    "type": "object",
                    "properties": properties,
                    "required": sorted(properties)[:count],
                    "additionalProperties": False,
                }
                for count in range(len(properties) + 1)
            ]
        )
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        objects(inner),
        inner.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2}),
        st.tuples(inner, inner).map(lambda pair: {"anyOf": list(pair)}),
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=SCHEMAS, temperature=st.sampled_from([0.0, 1.0, 2.0]), seed=st.integers(0, 9))
def test_an_answer_parses_and_validates_whatever_the_schema(engine, value, temperature, seed):
    async def ask() -> tuple[str, str | None, list[TokenDelta]]:
        sampling = {"max_tokens": 700, "temperature": temperature, "seed": seed, "top_p": 0.9}
        return await answer(engine, request("drawn", schema(value), **sampling))

    text, reason, _ = asyncio.run(ask())
    if reason == "length":  # white space is bounded between two tokens only
        assert len(text) > 100
        return
    assert reason == "stop"
    jsonschema.validate(json.loads(text), value)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.5, "top_p": 0.8, "seed": 2},
        {"temperature": 1.0, "top_k": 3, "seed": 3},
        {"temperature": 2.0, "min_p": 0.2, "seed": 4},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "temperature": 0.7, "seed": 5},
        {"frequency_penalty": -2.0},
    ],
    ids=str,
)
async def test_every_sampling_setting_keeps_to_the_grammar(engine, sampling):
    for number in range(3):
        text, reason, _ = await answer(engine, request("one", schema(PERSON), f"{number}?", max_tokens=600, **sampling))
        assert reason == "stop"
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_matches_its_expression_or_is_one_of_its_choices(engine, temperature):
    sampling = {"temperature": temperature, "seed": 7}
    phone = r"\d{3}-[a-f]{2,5}( or (yes|no))?"
    text, reason, _ = await answer(engine, request("regex", Grammar("regex", phone), **sampling))
    assert re.fullmatch(phone, text) and reason == "stop"
    text, reason, _ = await answer(engine, request("choice", choice("positive", "negative", "neutral"), **sampling))
    assert text in ("positive", "negative", "neutral") and reason == "stop"


async def test_a_greedy_answer_that_matches_anyway_is_unchanged_token_by_token(engine):
    num_compared = 0
    for number in range(60):
        prompt = f"Question {number}?"
        free, reason, deltas = await answer(engine, request("free", None, prompt, max_tokens=4, logprobs=2))
        if "\ufffd" in free:  # half a character, which no grammar allows
            continue
        num_compared += 1
        anything = request("bound", Grammar("regex", "(?s:.*)"), prompt, max_tokens=4, logprobs=2)
        bound, bound_reason, bound_deltas = await answer(engine, anything)
        assert (bound, bound_reason) == (free, reason)
        assert [delta.logprobs for delta in bound_deltas] == [delta.logprobs for delta in deltas]
        chosen = await answer(engine, request("chosen", choice(free, "something else"), prompt, max_tokens=50))
        assert chosen[:2] == (free, "stop")
    assert num_compared >= 3


async def test_log_probabilities_are_the_models_own_before_the_mask(engine):
    _, _, free = await answer(engine, request("free", None, max_tokens=1, logprobs=5))
    _, _, bound = await answer(engine, request("bound", choice("zebra", "quilt"), logprobs=5))
    (first,), (expected,) = bound[0].logprobs, free[0].logprobs
    assert first.top == expected.top
    assert first.logprob <= min(each.logprob for each in first.top)


async def test_an_answer_cut_by_max_tokens_says_length_and_keeps_its_beginning(engine):
    whole, _, _ = await answer(engine, request("whole", schema(PERSON)))
    text, reason, deltas = await answer(engine, request("cut", schema(PERSON), max_tokens=4))
    assert reason == "length" and len(deltas) == 4
    assert whole.startswith(text) and text != whole


async def test_a_batch_of_grammars_and_free_requests_gives_each_its_tokens_as_alone(engine):
    grammars = [
        None,
        schema(PERSON),
        Grammar("regex", "[a-z ]{5,40}"),
        choice("yes", "no", "maybe"),
        schema({"type": "array", "items": {"type": "integer"}, "maxItems": 5}),
        None,
    ]
    asked = [
        request(f"{i}", grammar, f"Question {i}?", max_tokens=60, temperature=float(i % 2), seed=i)
        for i, grammar in enumerate([*grammars, *grammars])
    ]
    alone = [(await answer(engine, each))[:2] for each in asked]
    together = await asyncio.gather(*(answer(engine, each) for each in asked))
    assert [each[:2] for each in together] == alone


async def test_an_answer_set_back_for_lack_of_room_goes_on_in_its_grammar(tiny_model):
    engine = Engine(tiny_model, SETTINGS.model_copy(update={"max_model_len": 256, "kv_tokens": 256}))
    text = Grammar("regex", "[a-z]{60,90}")
    asked = [request(f"{i}", text, f"Question {i}?", max_tokens=120, temperature=1.0, seed=i) for i in range(6)]
    alone = [(await answer(engine, each))[0] for each in asked]
    answers = await asyncio.gather(*(answer(engine, each) for each in asked))
    assert engine.stats().num_preemptions > 0
    engine.close()
    assert [each[0] for each in answers] == alone
    assert all(re.fullmatch("[a-z]{60,90}", each[0]) and each[1] == "stop" for each in answers)


HOSTILE = [
    schema({"$ref": "#"}),
    schema({"enum": [f"{i}" * 5 for i in range(9000)]}),
    schema([]),
    Grammar("regex", "("),
    Grammar("regex", "(a+)+" * 500),
]


async def test_hostile_grammars_are_refused_while_others_get_their_answers(engine):
    expected = await answer(engine, request("before", None, max_tokens=30))

    async def refused(index: int, grammar: Grammar) -> None:
        with pytest.raises(InvalidGrammar):
            await answer(engine, request(f"hostile {index}", grammar))

    free, *_ = await asyncio.gather(
        answer(engine, request("free", None, max_tokens=30)), *(refused(i, each) for i, each in enumerate(HOSTILE))
    )
    assert free[:2] == expected[:2]
    engine.check_health()


async def test_a_grammar_is_compiled_while_others_are_answered_and_refused_after_its_time(tiny_model, monkeypatch):
    gate = threading.Event()

    def slow(vocabulary: LLTokenizer, text: str) -> LLMatcher:
        assert gate.wait(60)
        return build(vocabulary, text)

    engine = Engine(tiny_model, SETTINGS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    engine._grammars.close()
    engine._grammars = GrammarCompiler(tokenizer, {0, 2}, engine.vocab_size, build=slow)
    monkeypatch.setattr("engine.generation.jobs.MAX_COMPILE_S", 0.05)
    try:
        stream = engine.submit(request("slow", choice("a", "b")))
        assert (await answer(engine, request("free", None, max_tokens=5)))[1] == "length"
        with pytest.raises(InvalidGrammar, match=f"was not compiled within {compiling.MAX_COMPILE_S:g} s"):
            await anext(stream)
        dropped = engine.submit(request("dropped", choice("c", "d")))
        await dropped.aclose()
        gate.set()
        text, reason, _ = await answer(engine, request("later", choice("a", "b")))
        assert text in ("a", "b") and reason == "stop"
        assert engine.stats().running + engine.stats().waiting == 0
    finally:
        gate.set()
        engine.close()


async def test_a_grammar_that_meets_a_limit_on_the_way_ends_its_own_answer_only(engine, monkeypatch):
    free, reason, _ = await answer(engine, request("free", None, max_tokens=20))
    failing = engine.submit(request("failing", Grammar("regex", "[a-z]{5,50}")))
    await anext(failing)
    job = engine._jobs.get("failing")
    assert job.sampler.matcher is not None
    job.sampler.matcher.failure = "too many items"
    with pytest.raises(InvalidGrammar, match="too complex to be applied"):
        while True:
            await anext(failing)
    assert (await answer(engine, request("free", None, max_tokens=20)))[:2] == (free, reason)


async def test_ignore_eos_is_refused_beside_a_grammar(engine):
    asked = request("both", choice("a"))
    with pytest.raises(InvalidRequest, match="ignore_eos contradicts a grammar"):
        engine.submit(replace(asked, sampling=replace(asked.sampling, ignore_eos=True)))
