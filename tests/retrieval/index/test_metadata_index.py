"""The metadata index against `Filter.matches`, through histories of writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from filter_cases import documents, filters
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval.index.conditions import Compares
from engine.retrieval.index.filters import parse_filter
from engine.retrieval.index.metadata_index import Column, MetadataIndex

pks = st.integers(-2, 6)
puts = st.tuples(st.just("put"), pks, documents)
removes = st.tuples(st.just("remove"), pks, st.none())


def check(index: MetadataIndex, stored: dict[int, dict], raw: dict) -> None:
    """The index and a pass over all documents agree on `raw`."""
    chosen = parse_filter(raw)
    mask = index.mask(chosen)
    passing = {pk for pk, fields in stored.items() if chosen.matches(fields)}
    slots = {index.slot_of(pk) for pk in passing}
    assert mask.dtype == np.bool_
    assert mask.tolist() == [slot in slots for slot in range(index.num_slots)]
    assert index.documents(mask).tolist() == sorted(passing)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(puts, puts, removes), max_size=15),
    st.lists(filters, min_size=1, max_size=4),
    st.sampled_from([1, 2, 64]),
)
def test_mask_agrees_with_matches_through_any_history(steps, raws, max_columns):
    index, stored = MetadataIndex(max_columns=max_columns), {}
    for step, (what, pk, fields) in enumerate(steps):
        if what == "put":
            stored[pk] = fields
            slot = index.put(pk, fields)
            assert slot == index.slot_of(pk)
        elif pk in stored:
            del stored[pk]
            index.remove(pk)
        assert len(index) == len(stored)
        # One filter after each write, so that its columns and mask are older than the writes that follow.
        check(index, stored, raws[step % len(raws)])
    assert len({index.slot_of(pk) for pk in stored}) == len(stored)
    for raw in raws:
        check(index, stored, raw)


def test_empty_index_has_no_slots():
    index = MetadataIndex()
    assert len(index) == index.num_slots == 0
    for raw in ({}, {"a": 1}, {"$not": {"a": 1}}, {"$or": [{"a": 1}, {"b": 2}]}):
        assert index.mask(parse_filter(raw)).shape == (0,)
    assert index.documents(index.mask(parse_filter({}))).dtype == np.int64


def test_index_grows_beyond_its_first_capacity_with_columns_in_use():
    index, stored = MetadataIndex(), {}
    for pk in range(2000):
        stored[pk] = {"n": pk % 7, "tags": [pk % 3, "x"]} if pk % 5 else {}
        index.put(pk, stored[pk])
        if pk in (0, 255, 256, 700):
            check(index, stored, {"n": {"$gte": 3}, "tags": {"$ne": 2}})
    check(index, stored, {"n": {"$gte": 3}, "tags": {"$ne": 2}})


def test_replaced_document_keeps_its_slot_and_loses_its_old_fields():
    index = MetadataIndex()
    slot = index.put(7, {"a": 1})
    assert index.mask(parse_filter({"a": 1})).tolist() == [True]
    assert index.put(7, {"b": 1}) == slot
    assert index.mask(parse_filter({"a": 1})).tolist() == [False]
    assert index.mask(parse_filter({"a": {"$exists": False}})).tolist() == [True]


def test_freed_slot_is_false_in_every_mask_and_goes_to_the_next_document():
    index = MetadataIndex()
    slots = [index.put(pk, {"a": pk}) for pk in (10, 11, 12)]
    assert slots == [0, 1, 2]
    index.remove(11)
    for raw in ({}, {"a": {"$ne": 5}}, {"$not": {"a": 5}}, {"a": None}, {"z": None}):
        assert not index.mask(parse_filter(raw))[1]
    assert index.documents(np.ones(3, np.bool_)).tolist() == [10, 12]
    assert index.put(13, {}) == 1
    assert index.num_slots == 3
    assert index.documents(index.mask(parse_filter({}))).tolist() == [10, 12, 13]


def test_unknown_documents_are_key_errors_and_change_nothing():
    index = MetadataIndex()
    index.put(1, {"a": 1})
    for ask in (index.slot_of, index.remove):
        with pytest.raises(KeyError, match="9"):
            ask(9)
    assert len(index) == 1
    assert index.mask(parse_filter({"a": 1})).tolist() == [True]


def test_mask_is_read_only_and_shared_until_the_next_write():
    index = MetadataIndex()
    index.put(1, {"a": 1})
    mask = index.mask(parse_filter({"a": {"$eq": 1}}))
    assert index.mask(parse_filter({"a": 1})) is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = False
    index.put(2, {"a": 1})
    assert mask.tolist() == [True]
    assert index.mask(parse_filter({"a": 1})).tolist() == [True, True]


def test_masks_beyond_the_cap_are_forgotten_oldest_use_first():
    index = MetadataIndex(max_masks=2)
    index.put(1, {"a": 1})
    first, second, third = (parse_filter({"a": n}) for n in (1, 2, 3))
    masks = index.mask(first), index.mask(second)
    assert index.mask(first) is masks[0]
    index.mask(third)
    assert index.mask(first) is masks[0]
    assert index.mask(second) is not masks[1]


class CountedDocument(dict[str, Any]):
    """Counts how often a field is looked up."""

    num_lookups = 0

    def __contains__(self, key: object) -> bool:
        self.num_lookups += 1
        return super().__contains__(key)


def lookups_of(index: MetadataIndex, document: CountedDocument, raw: dict) -> int:
    before = document.num_lookups
    index.mask(parse_filter(raw))
    return document.num_lookups - before


def test_documents_are_visited_once_per_field_not_once_per_filter():
    index, document = MetadataIndex(), CountedDocument(a=1, b=2)
    index.put(1, document)
    assert document.num_lookups == 0
    assert lookups_of(index, document, {"a": 1}) == 1
    assert lookups_of(index, document, {"a": {"$gt": 0}}) == 0
    assert lookups_of(index, document, {"$or": [{"a": 7}, {"b": 2}]}) == 1


def test_columns_beyond_the_cap_are_dropped_oldest_use_first():
    index, document = MetadataIndex(max_columns=2), CountedDocument(a=1, b=2, c=3)
    index.put(1, document)
    visits = [lookups_of(index, document, {name: 0.5 + step}) for step, name in enumerate("abacab")]
    assert visits == [1, 1, 0, 1, 0, 1]


def test_field_that_no_document_has_costs_no_column():
    index, document = MetadataIndex(max_columns=1), CountedDocument(a={"b": 1})
    index.put(1, document)
    index.put(2, {"gone": 1})
    index.put(2, {})
    lookups_of(index, document, {"a.b": 1})
    for name in ("z", "gone", "a.z", "b", "a.b.c", "$title"):
        assert lookups_of(index, document, {name: 1}) == 0
        assert index.mask(parse_filter({name: None})).tolist() == [True, True]
    assert lookups_of(index, document, {"a.b": 2}) == 0


def test_field_is_found_when_a_later_document_brings_it_and_lost_with_the_last_one():
    index, exists = MetadataIndex(), parse_filter({"a.b": {"$exists": True}})
    index.put(1, {})
    assert index.documents(index.mask(exists)).tolist() == []
    index.put(2, {"a": {"b": None}})
    index.put(3, {"a.b": 1})
    assert index.documents(index.mask(exists)).tolist() == [2, 3]
    index.remove(2)
    index.put(3, {})
    assert index.documents(index.mask(exists)).tolist() == []


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: f"v{n}", lambda n: [n, f"v{n}"], lambda n: {"x": n}])
def test_values_that_are_gone_leave_nothing_behind(wrap):
    column = Column("a", [{"a": wrap(0)}])
    for n in range(1, 1000):
        column.put(0, {"a": wrap(n)})
    assert len(column) == 1
    assert column.num_codes <= 2
    column.put(0, {})
    assert len(column) == 0
    assert not column._codes_with


def test_values_that_no_filter_tells_apart_share_a_code():
    column = Column("a", [{"a": value} for value in (1, 1.0, True, [1], [1.0], [True], {"x": 1}, {"y": 2}, None, "1")])
    assert len(column) == 7


def test_condition_is_asked_once_per_distinct_value():
    asked = []

    class Asked(Compares):
        def holds(self, value: Any) -> bool:
            asked.append(value)
            return super().holds(value)

    column = Column("a", [{"a": n % 3} for n in range(500)])
    mask = column.mask(Asked("a", "$gt", 1), 500)
    assert mask.sum() == 166
    assert sorted(value for value in asked if isinstance(value, int)) == [0, 1, 2]
    assert len(asked) == 4
