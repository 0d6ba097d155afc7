"""Metadata in columns: which documents pass a filter, in time of distinct values plus documents."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.retrieval.index.conditions import (
    ABSENT,
    Condition,
    Equals,
    Every,
    Filter,
    Not,
    Some,
    key_of,
    lookup,
    paths_of,
)

Mask = NDArray[np.bool_]

_FIRST_CAPACITY = 256
_GROWTH = 1.5
_NO_FIELDS: Mapping[str, Any] = {}

_Number = TypeVar("_Number", bound=np.generic)


class MetadataIndex:
    """The fields of one tenant's documents, each document in a slot. Not thread-safe: the owner holds a lock.

    A field's column is built when a filter first names it and follows every write from then on.
    """

    def __init__(self, *, max_columns: int = 64, max_masks: int = 32) -> None:
        """Keep the columns and the masks used last, at most so many; masks live until the next write."""
        self._max_columns = max_columns
        self._max_masks = max_masks
        self._slot_of: dict[int, int] = {}
        self._free: list[int] = []
        self._fields: list[Mapping[str, Any]] = []  # by slot; empty where free
        self._pks = np.zeros(0, np.int64)  # [capacity]
        self._used = np.zeros(0, np.bool_)  # [capacity]
        self._num_with: Counter[str] = Counter()  # documents by path
        self._columns: OrderedDict[str, Column] = OrderedDict()
        self._masks: OrderedDict[Filter, Mask] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slot_of)

    @property
    def num_slots(self) -> int:
        """Length of a mask: the most documents that there were at a time."""
        return len(self._fields)

    def slot_of(self, document_pk: int) -> int:
        """The document's slot, the same until it is removed. Raises: KeyError for an unknown document."""
        return self._slot_of[document_pk]

    def put(self, document_pk: int, fields: Mapping[str, Any]) -> int:
        """Add a document or replace its fields (see `document_fields`), and return its slot.

        The index keeps `fields`: do not change them afterwards.
        """
        slot = self._slot_of.get(document_pk)
        if slot is None:
            slot = self._take_slot(document_pk)
        self._replace_fields(slot, fields)
        return slot

    def remove(self, document_pk: int) -> None:
        """Forget a document; its slot goes to a later one. Raises: KeyError for an unknown document."""
        slot = self._slot_of.pop(document_pk)
        self._replace_fields(slot, _NO_FIELDS)
        self._used[slot] = False
        self._free.append(slot)

    def mask(self, filter: Filter) -> Mask:
        """Which slots hold a document that passes: [num_slots] bool, read-only, False for free slots."""
        mask = self._masks.get(filter)
        if mask is None:
            mask = self._evaluate(filter) & self._used[: self.num_slots]
            mask.flags.writeable = False
            self._masks[filter] = mask
        _keep_last_used(self._masks, filter, self._max_masks)
        return mask

    def documents(self, mask: Mask) -> NDArray[np.int64]:
        """The pks of the documents in the slots of `mask` [num_slots] bool, ascending."""
        num_slots = self.num_slots
        return np.sort(self._pks[:num_slots][mask & self._used[:num_slots]])

    def _take_slot(self, document_pk: int) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot = self.num_slots
            self._fields.append(_NO_FIELDS)
            self._pks = _with_room(self._pks, slot + 1, 0)
            self._used = _with_room(self._used, slot + 1, False)
        self._slot_of[document_pk] = slot
        self._pks[slot], self._used[slot] = document_pk, True
        return slot

    def _replace_fields(self, slot: int, fields: Mapping[str, Any]) -> None:
        self._masks.clear()
        for column in self._columns.values():
            column.put(slot, fields)
        self._num_with.update(paths_of(fields))
        for path in paths_of(self._fields[slot]):
            self._num_with[path] -= 1
            if not self._num_with[path]:
                del self._num_with[path]
        self._fields[slot] = fields

    def _evaluate(self, filter: Filter) -> Mask:
        """[num_slots] bool, a new array; anything for free slots."""
        match filter:
            case Condition():
                return self._evaluate_condition(filter)
            case Not(part):
                mask = self._evaluate(part)
                return np.logical_not(mask, out=mask)
            case Every(parts):
                mask = np.ones(self.num_slots, np.bool_)
                for part in parts:
                    mask &= self._evaluate(part)
                return mask
            case Some(parts):
                mask = np.zeros(self.num_slots, np.bool_)
                for part in parts:
                    mask |= self._evaluate(part)
                return mask
        raise AssertionError(f"a filter of unknown kind: {filter!r}")

    def _evaluate_condition(self, condition: Condition) -> Mask:
        path = condition.path
        # No column for a name that no document has: each would cost a pass and push out one that is used.
        if path not in self._num_with:
            return np.full(self.num_slots, condition.holds(ABSENT))
        if path not in self._columns:
            self._columns[path] = Column(path, self._fields)
        _keep_last_used(self._columns, path, self._max_columns)
        return self._columns[path].mask(condition, self.num_slots)


class Column:
    """One field of all documents: a code per slot, and the distinct values by code. The last use frees a code."""

    def __init__(self, path: str, documents: Iterable[Mapping[str, Any]]) -> None:
        """Read the field at `path` of the documents, given in the order of their slots."""
        self._path = path
        self._values: list[Any] = []  # by code; ABSENT where free
        self._num_uses: list[int] = []  # by code
        self._free: list[int] = []
        self._code_of: dict[Hashable, int] = {}  # by the value's key
        self._codes_with: dict[Hashable, set[int]] = {}  # of the lists with an element of this key
        self._codes = np.fromiter((self._take(lookup(fields, path)) for fields in documents), np.int32)  # [capacity]

    def __len__(self) -> int:
        """Distinct values among the documents."""
        return len(self._code_of)

    @property
    def num_codes(self) -> int:
        """Codes in use or free: the most distinct values that there were at a time."""
        return len(self._values)

    def put(self, slot: int, fields: Mapping[str, Any]) -> None:
        """Follow a write: the document in `slot` now has `fields`; none where the slot is free."""
        self._codes = _with_room(self._codes, slot + 1, -1)
        old = int(self._codes[slot])
        self._codes[slot] = self._take(lookup(fields, self._path))
        self._give_back(old)

    def mask(self, condition: Condition, num_slots: int) -> Mask:
        """Where `condition` holds: [num_slots] bool. It is asked once per value, not per document."""
        hits = np.zeros(self.num_codes + 1, np.bool_)
        hits[-1] = condition.holds(ABSENT)  # code -1 reads the last
        if isinstance(condition, Equals):
            for code in self._candidates(condition.keys):
                hits[code] = condition.holds(self._values[code])
        else:
            hits[:-1] = [condition.holds(value) for value in self._values]
        return hits[self._codes[:num_slots]]

    def _candidates(self, keys: Iterable[Hashable]) -> set[int]:
        """The only codes for which `Equals` can hold, so that one id of a million is found without a pass."""
        codes: set[int] = set()
        for key in keys:
            if key in self._code_of:
                codes.add(self._code_of[key])
            codes |= self._codes_with.get(key, set())
        return codes

    def _take(self, value: Any) -> int:
        """Count one more use of the value and return its code; -1 for ABSENT."""
        if value is ABSENT:
            return -1
        key = key_of(value)
        code = self._code_of.get(key)
        if code is not None:
            self._num_uses[code] += 1
            return code
        if self._free:
            code = self._free.pop()
            self._values[code], self._num_uses[code] = value, 1
        else:
            code = len(self._values)
            self._values.append(value)
            self._num_uses.append(1)
        self._code_of[key] = code
        for element in _element_keys(value):
            self._codes_with.setdefault(element, set()).add(code)
        return code

    def _give_back(self, code: int) -> None:
        if code < 0:
            return
        self._num_uses[code] -= 1
        if self._num_uses[code]:
            return
        value = self._values[code]
        self._values[code] = ABSENT
        self._free.append(code)
        del self._code_of[key_of(value)]
        for element in _element_keys(value):
            self._codes_with[element].discard(code)
            if not self._codes_with[element]:
                del self._codes_with[element]


def _element_keys(value: Any) -> set[Hashable]:
    return set(map(key_of, value)) if isinstance(value, list) else set()


def _keep_last_used(cache: OrderedDict[Any, Any], key: Hashable, most: int) -> None:
    cache.move_to_end(key)
    if len(cache) > most:
        cache.popitem(last=False)


def _with_room(array: NDArray[_Number], length: int, fill: int) -> NDArray[_Number]:
    """`array` itself where it is long enough, else a longer copy whose new entries are `fill`."""
    if length <= len(array):
        return array
    longer = np.full(max(length, int(len(array) * _GROWTH), _FIRST_CAPACITY), fill, array.dtype)
    longer[: len(array)] = array
    return longer
