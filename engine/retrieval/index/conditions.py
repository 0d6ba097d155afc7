"""What a metadata filter means for one document. The grammar that requests write is in filters.py.

A field is a metadata name. A dot descends into nested objects (not into lists); a name that itself holds the dot goes
first. Built-in fields are $id, $source, $title and $content_type, and no metadata name hides them. The operators mean
what they mean in MongoDB:

    $eq, $in             the value equals the operand (one of the operands), or it is a list with an element that does;
                         1 equals 1.0, true does not equal 1, null equals null and the absence of the field
    $ne, $nin            the negations of $eq and $in: they match documents without the field as well
    $gt, $gte, $lt, $lte numbers compare with numbers, strings with strings by code point (so ISO dates as dates), and
                         nothing else matches; of a list, one element is enough, for each operator on its own
    $exists              whether the field is there; null is there
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

BUILT_IN_FIELDS = ("$id", "$source", "$title", "$content_type")
COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
ABSENT: Final[Any] = object()  # the value of a field that a document lacks; null is a value


class Filter(ABC):
    """A parsed filter: frozen and hashable, equal for equal filters in whatever order they were written."""

    __slots__ = ()

    @abstractmethod
    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether a document with these fields (see `document_fields`) passes."""


@dataclass(frozen=True, slots=True)
class Every(Filter):
    """All parts match; with no parts, every document."""

    parts: frozenset[Filter]

    def matches(self, fields: Mapping[str, Any]) -> bool:
        return all(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Some(Filter):
    """At least one part matches."""

    parts: frozenset[Filter]

    def matches(self, fields: Mapping[str, Any]) -> bool:
        return any(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The part does not match."""

    part: Filter

    def matches(self, fields: Mapping[str, Any]) -> bool:
        return not self.part.matches(fields)


@dataclass(frozen=True, slots=True)
class Condition(Filter):
    """A question about one field. `holds` is its only definition: an index asks it once per distinct value."""

    path: str

    def matches(self, fields: Mapping[str, Any]) -> bool:
        return self.holds(lookup(fields, self.path))

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether the condition is met by a field's value, or by ABSENT. Values of equal `key_of` get one answer."""


@dataclass(frozen=True, slots=True)
class Equals(Condition):
    """`$eq` and `$in`: the value or one of its elements has one of these keys."""

    keys: frozenset[Hashable]

    def holds(self, value: Any) -> bool:
        if value is ABSENT:
            return None in self.keys
        if isinstance(value, list) and any(key_of(element) in self.keys for element in value):
            return True
        return key_of(value) in self.keys


@dataclass(frozen=True, slots=True)
class Compares(Condition):
    """`$gt`, `$gte`, `$lt`, `$lte`: the value or one of its elements is of the operand's kind and on its side."""

    operator: str
    operand: float | str

    def holds(self, value: Any) -> bool:
        kind = str if isinstance(self.operand, str) else (int, float)
        if isinstance(value, kind) and not isinstance(value, bool):
            return COMPARISONS[self.operator](value, self.operand)
        return isinstance(value, list) and any(self.holds(one) for one in value if not isinstance(one, list))


@dataclass(frozen=True, slots=True)
class Exists(Condition):
    """`$exists: true`: the field is there."""

    def holds(self, value: Any) -> bool:
        return value is not ABSENT


def document_fields(
    metadata: Mapping[str, Any], *, id: str, source: str, title: str | None, content_type: str
) -> dict[str, Any]:
    """What a filter sees of a document: its metadata and the built-in fields; a document without title lacks $title."""
    fields = {**metadata, "$id": id, "$source": source, "$content_type": content_type}
    fields.pop("$title", None)
    return fields if title is None else fields | {"$title": title}


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """The value at `path`, or ABSENT."""
    while path not in fields:
        head, dot, path = path.partition(".")
        inner = fields.get(head)
        if not dot or not isinstance(inner, dict):
            return ABSENT
        fields = inner
    return fields[path]


def paths_of(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every path at which `lookup` may find something in a document."""
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from paths_of(value, f"{prefix}{name}.")


def key_of(value: object) -> Hashable:
    """A hashable stand-in for a JSON value: two values have the same key where no filter can tell them apart."""
    if isinstance(value, bool):
        return "bool", value  # a bare True would equal 1
    if isinstance(value, list):
        return "list", *map(key_of, value)
    if isinstance(value, dict):
        return ("object",)  # no operand is an object
    return value
