"""Grammars compiled beside the engine: sound ones once, hostile ones refused within caps that the message names."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.errors import InvalidGrammar, Overloaded
from engine.generation.grammar.compiler import GrammarCompiler
from engine.generation.grammar.compiler import _build as build
from engine.values import Grammar


@pytest.fixture(scope="module")
def compiler(tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, {0, 2}, len(tokenizer))
    yield compiler
    compiler.close()


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


REFUSED = [
    (Grammar("json_schema", "{"), "the schema is not JSON"),
    (schema([1]), "is of type list; it must be a JSON object"),
    (schema(True), "is of type bool"),
    (schema({"type": "integr"}), "the schema cannot be used: Invalid type: integr"),
    (
        schema({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "strin"}}}}),
        "cannot be used at properties.a.items: Invalid type: strin",
    ),
    (
        schema({"$defs": {"b": {"anyOf": [{}, {"not": {}}]}}, "properties": {"a": {"$ref": "#/$defs/b"}}}),
        'at properties.a.*Unimplemented keys|at \\$defs.b.anyOf.1: Unimplemented keys: \\["not"\\]',
    ),
    (schema({"properties": {"a": {"pattern": "(", "type": "string"}}}), "at properties.a: regex parse error"),
    (schema({"$ref": "https://example.com/schema"}), "cannot be used: Resource 'https://example.com/schema'"),
    (schema({"$ref": "#"}), "no text matches the schema"),
    (schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "no text"),
    (schema({"enum": []}), "Unsatisfiable schema"),
    (
        schema({"properties": {"a": {"oneOf": [{"type": "integer"}, {"minimum": 3, "type": "integer"}]}}}),
        r"at properties\.a: oneOf whose alternatives overlap cannot be enforced; use anyOf, .* constant\.$",
    ),
    (schema({"enum": [str(i) for i in range(20_000)]}), "schema has 168900 bytes; at most 65536"),
    (schema(nested(40)), "levels; at most 32"),
    (schema({"x-guidance": {"lenient": True}, "not": {}}), "Unimplemented keys"),
    (Grammar("regex", "("), "regular expression cannot be used: .*unclosed group"),
    (Grammar("regex", "(?=a)a"), "look-around"),
    (Grammar("regex", "a" * 2049), "regular expression has 2049 characters; at most 2048"),
    (Grammar("choice", "[]"), "at least one character"),
    (Grammar("choice", '[""]'), "at least one character"),
    (Grammar("choice", json.dumps([str(i) for i in range(1025)])), "choice has 1025 texts; at most 1024"),
    (Grammar("choice", json.dumps(["a" * 513])), "513 characters; at most 512"),
]


@pytest.mark.parametrize(("grammar", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_malformed_or_hostile_grammar_is_refused_naming_the_cap_or_the_place(compiler, grammar, message):
    with pytest.raises(InvalidGrammar, match=message) as caught:
        compiler.compile(grammar).result(timeout=60)
    assert "\n" not in str(caught.value)
    assert caught.value.param in ("response_format.json_schema.schema", "guided_regex", "guided_choice")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|b)*a(a|b){50}", "(.*a){20}", "(x|xx|xxx){50}y", "a{1000}{1000}"])
def test_an_expression_that_makes_others_backtrack_is_compiled(compiler, pattern):
    matcher = compiler.compile(Grammar("regex", pattern)).result(timeout=60).start()
    assert matcher.failure is None


@pytest.mark.parametrize("limits", [{"initial_lexer_fuel": 50}, {"step_max_items": 1}, {"max_grammar_size": 3}])
def test_a_grammar_beyond_the_librarys_limits_is_refused_as_too_complex(tokenizer, limits):
    def strict(vocabulary: LLTokenizer, text: str) -> LLMatcher:
        return LLMatcher(vocabulary, text, log_level=0, limits=LLParserLimits(verbose_errors=False, **limits))

    compiler = GrammarCompiler(tokenizer, {2}, len(tokenizer), build=strict)
    with pytest.raises(InvalidGrammar, match="the schema is too complex to be applied"):
        compiler.compile(schema({"properties": {"a": {"type": "string", "pattern": "(ab|cd)*"}}})).result(timeout=60)
    compiler.close()


def test_equal_grammars_are_compiled_once(tokenizer):
    built = []

    def counting(vocabulary: LLTokenizer, text: str) -> LLMatcher:
        built.append(text)
        return build(vocabulary, text)

    compiler = GrammarCompiler(tokenizer, {2}, len(tokenizer), max_cached=2, build=counting)
    a, b, c = (Grammar("regex", pattern) for pattern in "abc")
    for grammar in (a, a, b, a):
        compiler.compile(grammar).result(timeout=60)
    assert len(built) == 2
    compiler.compile(c).result(timeout=60)  # b is the longest unused
    compiler.compile(a).result(timeout=60)
    assert len(built) == 3
    compiler.compile(b).result(timeout=60)
    assert len(built) == 4
    compiler.close()


def test_grammars_beyond_the_queue_are_refused_while_others_compile(tokenizer):
    gate = threading.Event()

    def slow(vocabulary: LLTokenizer, text: str) -> LLMatcher:
        assert gate.wait(60)
        return build(vocabulary, text)

    compiler = GrammarCompiler(tokenizer, {2}, len(tokenizer), max_waiting=3, build=slow)
    waiting = [compiler.compile(Grammar("regex", pattern)) for pattern in "abc"]
    assert compiler.compile(Grammar("regex", "a")) is waiting[0]
    with pytest.raises(Overloaded, match="grammars to compile is full"):
        compiler.compile(Grammar("regex", "d"))
    gate.set()
    assert all(future.result(timeout=60) for future in waiting)
    assert compiler.compile(Grammar("regex", "d")).result(timeout=60)
    compiler.close()
