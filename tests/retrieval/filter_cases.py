"""Random documents and filters, and what a filter means, written a second time: by cases, over the raw JSON."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

MISSING = object()
NAMES = ["a", "b", "c", "a.b"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.sampled_from([-0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["", "a", "b"]),
)
flat_lists = st.lists(scalars, max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=2),
    max_leaves=5,
)
documents = st.dictionaries(st.sampled_from(NAMES), values, max_size=4)

_paths = st.sampled_from(["a", "b", "c", "a.b", "a.b.c", "b.a", "z"])
_bounds = st.one_of(st.integers(-1, 2), st.floats(-1, 2), st.sampled_from(["", "a", "b"]))
_operators = st.fixed_dictionaries(
    {},
    optional={
        "$eq": scalars | flat_lists,
        "$ne": scalars | flat_lists,
        "$in": flat_lists,
        "$nin": flat_lists,
        "$gt": _bounds,
        "$gte": _bounds,
        "$lt": _bounds,
        "$lte": _bounds,
        "$exists": st.booleans(),
    },
).filter(bool)
_conditions = st.dictionaries(_paths, scalars | flat_lists | _operators, max_size=2)
filters = st.recursive(
    _conditions,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}, optional={"a": scalars}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}, optional={"b": scalars}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)


def expected(raw: dict[str, Any], document: dict[str, Any]) -> bool:
    """What `raw` means for `document`."""
    for name, wanted in raw.items():
        if name == "$and":
            ok = all(expected(part, document) for part in wanted)
        elif name == "$or":
            ok = any(expected(part, document) for part in wanted)
        elif name == "$not":
            ok = not expected(wanted, document)
        else:
            found = _find(document, name)
            operators = wanted if isinstance(wanted, dict) else {"$eq": wanted}
            ok = all(_holds(op, found, operand) for op, operand in operators.items())
        if not ok:
            return False
    return True


def _find(document: dict[str, Any], name: str) -> Any:
    if name in document:
        return document[name]
    if "." in name:
        first, rest = name.split(".", 1)
        if isinstance(document.get(first), dict):
            return _find(document[first], rest)
    return MISSING


def _holds(op: str, found: Any, operand: Any) -> bool:
    if op == "$exists":
        return (found is not MISSING) == operand
    if op == "$ne":
        return not _holds("$eq", found, operand)
    if op == "$nin":
        return not _holds("$in", found, operand)
    if op == "$in":
        return any(_holds("$eq", found, one) for one in operand)
    if op == "$eq" and found is MISSING:
        return operand is None
    candidates = [found, *found] if isinstance(found, list) else [found]
    if op == "$eq":
        return any(_same(one, operand) for one in candidates)
    return any(_kind(one) == _kind(operand) and _compare(op, one, operand) for one in candidates)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(x, y) for x, y in zip(one, other, strict=True))
    return _kind(one) == _kind(other) and one == other


def _kind(value: Any) -> str:
    for kind, types in (("bool", bool), ("number", int | float), ("string", str), ("list", list), ("object", dict)):
        if isinstance(value, types):
            return kind
    return "null"


def _compare(op: str, one: Any, other: Any) -> bool:
    if op == "$gt":
        return one > other
    if op == "$gte":
        return one >= other
    return one < other if op == "$lt" else one <= other
