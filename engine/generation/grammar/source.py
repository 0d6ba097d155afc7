"""From what a request asks for to the library's own notation, within caps that cost nothing to check."""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher

from engine.errors import InvalidGrammar
from engine.values import Grammar

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 32
MAX_REGEX_CHARS = 2_048
MAX_CHOICES = 1_024
MAX_CHOICE_CHARS = 512
# Where a request holds it, by kind: errors point there.
PARAMS = {"json_schema": "response_format.json_schema.schema", "regex": "guided_regex", "choice": "guided_choice"}
# White space between JSON tokens is allowed, so that a model may indent, but not without end: some models never stop.
# Set here, because the library would otherwise take the first three from the schema's own "x-guidance".
_JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n\r\t]{0,32}", "lenient": False, "coerce_one_of": False}


def library_grammar(grammar: Grammar) -> str:
    """The grammar in llguidance's notation; whether that compiles is not known yet.

    Raises: InvalidGrammar naming the cap that is exceeded, or what is malformed.
    """
    if grammar.kind == "json_schema":
        return _checked_schema(grammar.source)
    if grammar.kind == "regex":
        _check("regular expression", len(grammar.source), MAX_REGEX_CHARS, "characters", "regex")
        return str(LLMatcher.grammar_from_regex(grammar.source))
    return _from_choices(grammar.source)


def _checked_schema(source: str) -> str:
    _check("schema", len(source.encode()), MAX_SCHEMA_BYTES, "bytes", "json_schema")
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidGrammar(f"the schema is not JSON: {error}.", param=PARAMS["json_schema"]) from None
    if not isinstance(schema, dict):
        raise InvalidGrammar(
            f"the schema is of type {type(schema).__name__}; it must be a JSON object such as "
            '{"type": "object", "properties": {...}}.',
            param=PARAMS["json_schema"],
        )
    _check("schema", _depth(schema), MAX_SCHEMA_DEPTH, "levels", "json_schema")
    return from_schema(source)


def from_schema(source: str) -> str:
    """A schema in llguidance's notation, unchecked."""
    return str(LLMatcher.grammar_from_json_schema(source, overrides=_JSON_OPTIONS))


def _from_choices(source: str) -> str:
    choices = json.loads(source)
    _check("choice", len(choices), MAX_CHOICES, "texts", "choice")
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidGrammar("the choice must be a list of texts of at least one character.", param=PARAMS["choice"])
    _check("longest text of the choice", max(map(len, choices)), MAX_CHOICE_CHARS, "characters", "choice")
    return str(LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices)))


def _check(what: str, value: int, most: int, unit: str, kind: str) -> None:
    if value > most:
        raise InvalidGrammar(f"the {what} has {value} {unit}; at most {most} are allowed.", param=PARAMS[kind])


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level, since recursion would itself be limited by depth."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth
