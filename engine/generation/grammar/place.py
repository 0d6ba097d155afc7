"""Where in a schema the library's complaint comes from, which its messages do not say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

_MAX_TRIES = 256
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_SHARED = ("$defs", "definitions")


def failing_place(schema: dict[str, Any], message: str, complaint: Callable[[dict[str, Any]], str]) -> str:
    """Keys to the innermost subschema that fails by itself with the same `message`, joined by dots; empty for the root.

    `complaint` compiles a schema and gives the library's message, or an empty one.
    """
    shared = {key: schema[key] for key in _SHARED if key in schema}
    keys: list[str] = []
    num_tries = 0
    while True:
        for path, inner in _subschemas(schema):
            num_tries += 1
            if num_tries > _MAX_TRIES:
                return ".".join(keys)
            if complaint(shared | inner if path[0] not in _SHARED else inner) == message:
                keys += path
                schema = inner
                break
        else:
            return ".".join(keys)


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for key in _MAPS:
        inner = schema.get(key)
        for name, each in inner.items() if isinstance(inner, dict) else ():
            if isinstance(each, dict):
                yield (key, name), each
    for key in _LISTS:
        inner = schema.get(key)
        for index, each in enumerate(inner if isinstance(inner, list) else ()):
            if isinstance(each, dict):
                yield (key, str(index)), each
    for key in _SINGLE:
        inner = schema.get(key)
        if isinstance(inner, dict):
            yield (key,), inner
