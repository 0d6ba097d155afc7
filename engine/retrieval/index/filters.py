"""The grammar of metadata filters, as requests write them. What they mean: conditions.py.

    {"lang": "en", "year": {"$gte": 2024, "$lt": 2026}}          fields and operators of one object are ANDed
    {"$or": [{"tags": {"$in": ["gpu", "cpu"]}}, {"$not": {"owner.team": null}}]}
    {}                                                           every document

What is not understood is refused with the nearest thing that is; it never matches everything.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable

from engine.errors import InvalidRequest
from engine.retrieval.index.conditions import (
    BUILT_IN_FIELDS,
    COMPARISONS,
    Compares,
    Equals,
    Every,
    Exists,
    Filter,
    Not,
    Some,
    document_fields,
    key_of,
)

__all__ = ["Filter", "document_fields", "parse_filter"]

MAX_DEPTH = 16
MAX_CONDITIONS = 256
MAX_OPERANDS = 1000
MAX_NAME_CHARS = 256

LOGICAL_OPERATORS = ("$and", "$or", "$not")
FIELD_OPERATORS = ("$eq", "$ne", "$in", "$nin", *COMPARISONS, "$exists")


def parse_filter(raw: object) -> Filter:
    """Read a filter as it came in a request's JSON.

    Raises: InvalidRequest (`param="filter"`) for anything outside the grammar and its limits: MAX_DEPTH levels of
        objects, MAX_CONDITIONS conditions, MAX_OPERANDS values in a list, MAX_NAME_CHARS characters in a name.
    """
    return _Parser().read_object(raw, "a filter", depth=1)


class _Parser:
    def __init__(self) -> None:
        self._num_conditions = 0

    def read_object(self, raw: object, what: str, depth: int) -> Filter:
        if not isinstance(raw, dict):
            raise _refusal(f'{what} must be an object, got {_show(raw)}. Write for example {{"lang": "en"}}.')
        if depth > MAX_DEPTH:
            raise _refusal(f"the filter nests deeper than {MAX_DEPTH} levels, the most allowed. Flatten it.")
        if not raw:
            self._count_condition()
        return _join(Every, [self._read_entry(name, value, depth) for name, value in raw.items()])

    def _read_entry(self, raw_name: object, value: object, depth: int) -> Filter:
        name = _check_name(raw_name)
        if name == "$not":
            return Not(self.read_object(value, "the operand of $not", depth + 1))
        if name in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise _refusal(
                    f"{name} needs a list of at least one filter, got {_show(value)}. Add one or drop {name}."
                )
            parts = [self.read_object(part, f"each item of {name}", depth + 1) for part in value]
            return _join(Every if name == "$and" else Some, parts)
        if name.startswith("$") and name not in BUILT_IN_FIELDS:
            raise _unknown_name(name)
        if not isinstance(value, dict):
            return self._read_condition(name, "$eq", value)
        if not value:
            raise _refusal(
                f"field {name!r} has no operator; allowed: {', '.join(FIELD_OPERATORS)}. "
                'Any value at all is {"$exists": true}.'
            )
        return _join(Every, [self._read_condition(name, op, operand) for op, operand in value.items()])

    def _read_condition(self, path: str, raw_op: object, operand: object) -> Filter:
        self._count_condition()
        op = _check_name(raw_op)
        if op not in FIELD_OPERATORS:
            raise _unknown_operator(path, op)
        where = f"field {path!r}: {op}"
        if op == "$exists":
            if not isinstance(operand, bool):
                raise _refusal(f"{where} needs true or false, got {_show(operand)}. Write one of them.")
            return Exists(path) if operand else Not(Exists(path))
        if op in COMPARISONS:
            if isinstance(operand, bool) or not isinstance(operand, int | float | str):
                raise _refusal(
                    f"{where} needs a number or a string, got {_show(operand)}. Other values take $eq or $in."
                )
            _check_scalar(operand, where)
            return Compares(path, op, operand)
        if op in ("$in", "$nin"):
            equals = Equals(path, frozenset(map(key_of, _check_list(operand, where))))
        else:
            _check_list(operand if isinstance(operand, list) else [operand], where)
            equals = Equals(path, frozenset([key_of(operand)]))
        return Not(equals) if op in ("$ne", "$nin") else equals

    def _count_condition(self) -> None:
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise _refusal(
                f"the filter has more than {MAX_CONDITIONS} conditions, the most allowed. "
                "Write the alternatives of one field as one $in."
            )


def _join(kind: type[Every] | type[Some], parts: Iterable[Filter]) -> Filter:
    # Nested ones of the same kind merge, so that {"a": 1, "b": 2} equals its spelling with $and.
    flat = frozenset(inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,)))
    return next(iter(flat)) if len(flat) == 1 else kind(flat)


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise _refusal(f"{_show(name)} names no field; allowed: a string of 1 to {MAX_NAME_CHARS} characters.")
    if len(name) > MAX_NAME_CHARS:
        raise _refusal(
            f"the name {_show(name)} has {len(name)} characters; at most {MAX_NAME_CHARS} are allowed. Shorten it."
        )
    return name


def _check_list(operand: object, where: str) -> list[object]:
    if not isinstance(operand, list):
        raise _refusal(f"{where} needs a list, got {_show(operand)}. Write [{_show(operand)}].")
    if len(operand) > MAX_OPERANDS:
        raise _refusal(f"{where} lists {len(operand)} values; at most {MAX_OPERANDS} are allowed. Split it with $or.")
    for value in operand:
        _check_scalar(value, where)
    return operand


def _check_scalar(value: object, where: str) -> None:
    if value is not None and not isinstance(value, int | float | str):
        raise _refusal(
            f"{where} got {_show(value)}; allowed: null, true, false, numbers and strings. "
            'Flatten a list; reach into an object by a dot: {"owner.team": "docs"}.'
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(f"{where} got {value}; allowed: finite numbers. Leave the condition out where it has no bound.")


def _unknown_name(name: str) -> InvalidRequest:
    if name in FIELD_OPERATORS:
        return _refusal(f'{name} stands without a field. Write {{"field": {{"{name}": ...}}}}.')
    allowed = (*LOGICAL_OPERATORS, *BUILT_IN_FIELDS)
    return _refusal(f"{name!r} is neither an operator nor a built-in field; {_nearest(name, allowed)}")


def _unknown_operator(path: str, op: str) -> InvalidRequest:
    if op in LOGICAL_OPERATORS:
        return _refusal(f'field {path!r}: {op} cannot stand within a field. Put it around: {{"{op}": ...}}.')
    if not op.startswith("$"):
        fix = f"write ${op}" if f"${op}" in FIELD_OPERATORS else f"ask for a nested field by a dot: '{path}.{op}'"
        return _refusal(f"field {path!r}: {op!r} is not an operator, since those start with $; {fix}.")
    return _refusal(f"field {path!r}: {op!r} is not an operator; {_nearest(op, FIELD_OPERATORS)}")


def _nearest(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), allowed, n=1, cutoff=0.5)
    return (f"did you mean {near[0]}? Allowed" if near else "allowed") + f" here: {', '.join(allowed)}."


def _show(value: object) -> str:
    return reprlib.repr(value)  # cut short: a message must not carry a whole body back


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="filter")
