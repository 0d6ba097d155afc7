"""Filters: what they mean, against a second evaluator and MongoDB's semantics by hand; and what is refused."""

from __future__ import annotations

import math
import re

import pytest
from filter_cases import documents, expected, filters
from hypothesis import example, given, settings

from engine.errors import InvalidRequest
from engine.retrieval.index.filters import document_fields, parse_filter


@settings(max_examples=400, deadline=None)
@given(filters, documents)
@example({"a": {"$in": [True]}}, {"a": 1})
@example({"a.b.c": 1}, {"a.b": {"c": 1}, "a": {"b": {"c": 1}}})
def test_filter_means_what_a_naive_evaluator_says(raw, document):
    assert parse_filter(raw).matches(document) == expected(raw, document)


@pytest.mark.parametrize(
    ("raw", "document", "matches"),
    [
        ({}, {}, True),
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": "x"}, {"a": "X"}, False),
        ({"a": "x"}, {}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": False}, {"a": 0.0}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 2**60}, {"a": 2**60 + 1}, False),
        # a list, whole or by element, one level deep
        ({"a": "x"}, {"a": ["w", "x"]}, True),
        ({"a": "x"}, {"a": [["x"]]}, False),
        ({"a": ["w", "x"]}, {"a": ["w", "x"]}, True),
        ({"a": ["w", "x"]}, {"a": ["x", "w"]}, False),
        ({"a": ["w"]}, {"a": [["w"], "x"]}, True),
        ({"a": [1]}, {"a": [True]}, False),
        ({"a": []}, {"a": []}, True),
        ({"a": []}, {}, False),
        ({"a": 1}, {"a": {"b": 1}}, False),
        # null and absence
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, True),
        ({"a": None}, {"a": 0}, False),
        ({"a": None}, {"a": [1, None]}, True),
        ({"a": None}, {"a": []}, False),
        ({"a": {"$ne": None}}, {}, False),
        ({"a": {"$ne": None}}, {"a": 0}, True),
        ({"a": {"$in": [None, 7]}}, {}, True),
        ({"a": {"$exists": True}}, {"a": None}, True),
        ({"a": {"$exists": False}}, {"a": None}, False),
        ({"a": {"$exists": False}}, {"b": 1}, True),
        # negations match documents without the field
        ({"a": {"$ne": 1}}, {}, True),
        ({"a": {"$ne": 1}}, {"a": [0, 1]}, False),
        ({"a": {"$nin": [1, 2]}}, {}, True),
        ({"a": {"$nin": [1, 2]}}, {"a": [3, 2]}, False),
        ({"a": {"$nin": []}}, {"a": 1}, True),
        ({"a": {"$in": []}}, {"a": 1}, False),
        ({"a": {"$in": ["x", 1]}}, {"a": 1}, True),
        ({"$not": {"a": {"$gt": 1}}}, {}, True),
        ({"$not": {}}, {"a": 1}, False),
        # order: numbers with numbers, strings with strings
        ({"a": {"$gt": 1}}, {"a": 1.5}, True),
        ({"a": {"$gt": 1}}, {"a": 1}, False),
        ({"a": {"$gte": 1}}, {"a": 1.0}, True),
        ({"a": {"$lt": 1}}, {"a": "0"}, False),
        ({"a": {"$lte": 1}}, {"a": True}, False),
        ({"a": {"$lt": 1}}, {"a": None}, False),
        ({"a": {"$lt": 1}}, {}, False),
        ({"a": {"$gte": "2024-05-01"}}, {"a": "2024-11-30T08:00:00Z"}, True),
        ({"a": {"$lt": "2024-05-01"}}, {"a": "2024-11-30"}, False),
        ({"a": {"$gt": "Z"}}, {"a": "a"}, True),
        ({"a": {"$gt": 5}}, {"a": [1, 9]}, True),
        ({"a": {"$gt": 5, "$lt": 3}}, {"a": [1, 9]}, True),
        ({"a": {"$gt": 5}}, {"a": [[9]]}, False),
        ({"a": {"$gt": 5}}, {"a": [True, "9", None]}, False),
        ({"a": {"$gt": 5, "$lt": 3}}, {"a": 4}, False),
        # paths
        ({"a.b": 1}, {"a": {"b": 1}}, True),
        ({"a.b.c": 1}, {"a": {"b": {"c": [1]}}}, True),
        ({"a.b": 1}, {"a.b": 1}, True),
        ({"a.b": 1}, {"a.b": 2, "a": {"b": 1}}, False),
        ({"a.b": 1}, {"a": [{"b": 1}]}, False),
        ({"a.b": None}, {"a": 3}, True),
        # several of anything in one object are ANDed
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
        ({"$or": [{"a": 1}, {"b": 2}], "c": 3}, {"b": 2, "c": 3}, True),
        ({"$or": [{"a": 1}, {"b": 2}], "c": 3}, {"b": 2}, False),
        ({"$and": [{"a": 1}, {"$not": {"b": 2}}]}, {"a": 1}, True),
    ],
)
def test_filter_means_what_it_means_in_mongodb(raw, document, matches):
    assert parse_filter(raw).matches(document) is matches
    assert expected(raw, document) is matches


FIELDS = document_fields(
    {"$id": "forged", "$title": "forged", "lang": "en"},
    id="docs/a.md",
    source="docs",
    title=None,
    content_type="text/html",
)


@pytest.mark.parametrize(
    ("raw", "matches"),
    [
        ({"$id": "docs/a.md"}, True),
        ({"$id": "forged"}, False),
        ({"$source": {"$in": ["docs"]}}, True),
        ({"$content_type": "text/html"}, True),
        ({"$title": {"$exists": True}}, False),
        ({"lang": "en"}, True),
    ],
)
def test_built_in_fields_are_the_documents_own_whatever_its_metadata_says(raw, matches):
    assert parse_filter(raw).matches(FIELDS) is matches


def test_title_is_a_field_where_the_document_has_one():
    fields = document_fields({}, id="d", source="s", title="T", content_type="c")
    assert parse_filter({"$title": "T"}).matches(fields)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": {"$gt": 2, "$lt": 5}}, {"b": {"$lt": 5, "$gt": 2.0}, "a": {"$eq": 1.0}}),
        ({"a": 1, "b": 2}, {"$and": [{"b": 2}, {"a": 1}]}),
        ({"$or": [{"a": 1}, {"b": 2}]}, {"$or": [{"b": 2}, {"a": 1}]}),
        ({"a": {"$in": ["x", "y"]}}, {"a": {"$in": ["y", "x", "y"]}}),
    ],
)
def test_filters_that_differ_in_order_only_are_one_cache_key(one, other):
    assert parse_filter(one) == parse_filter(other)
    assert len({parse_filter(one), parse_filter(other)}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": {"$ne": 1}}),
        ({"a": [1]}, {"a": {"$in": [1]}}),
        ({"a": {"$gt": 1}}, {"a": {"$gte": 1}}),
        ({"$and": [{"a": 1}, {"b": 2}]}, {"$or": [{"a": 1}, {"b": 2}]}),
        ({"a": {"$exists": True}}, {"a": {"$exists": False}}),
    ],
)
def test_filters_of_different_meaning_are_different_cache_keys(one, other):
    assert parse_filter(one) != parse_filter(other)


def nested(levels: int) -> dict:
    return {"a": 1} if levels == 1 else {"$not": nested(levels - 1)}


ALL_OPERATORS = "$eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, 'a filter must be an object, got None. Write for example {"lang": "en"}.'),
        ([{"a": 1}], "a filter must be an object, got [{'a': 1}]."),
        ({"$not": [1]}, "the operand of $not must be an object, got [1]."),
        ({"$or": [{"a": 1}, "b"]}, "each item of $or must be an object, got 'b'."),
        ({"$and": []}, "$and needs a list of at least one filter, got []. Add one or drop $and."),
        ({"$or": []}, "$or needs a list of at least one filter, got []. Add one or drop $or."),
        ({"$and": {"a": 1}}, "$and needs a list of at least one filter, got {'a': 1}."),
        (
            {"$adn": [{"a": 1}]},
            "'$adn' is neither an operator nor a built-in field; did you mean $and? "
            "Allowed here: $and, $or, $not, $id, $source, $title, $content_type.",
        ),
        ({"$Source": "x"}, "'$Source' is neither an operator nor a built-in field; did you mean $source?"),
        ({"$where": "1"}, "'$where' is neither an operator nor a built-in field; allowed here: $and,"),
        ({"$id.x": 1}, "'$id.x' is neither an operator nor a built-in field"),
        ({"$gt": 3}, '$gt stands without a field. Write {"field": {"$gt": ...}}.'),
        ({"a": {"$gtt": 3}}, f"field 'a': '$gtt' is not an operator; did you mean $gt? Allowed here: {ALL_OPERATORS}."),
        ({"a": {"$EXISTS": True}}, "field 'a': '$EXISTS' is not an operator; did you mean $exists?"),
        ({"a": {"$size": 3}}, "field 'a': '$size' is not an operator; "),
        ({"a": {"$eq": 1, "$contains": 2}}, "field 'a': '$contains' is not an operator; "),
        ({"a": {"$not": {"$gt": 1}}}, "field 'a': $not cannot stand within a field. Put it around: {\"$not\": ...}."),
        ({"a": {"gte": 3}}, "field 'a': 'gte' is not an operator, since those start with $; write $gte."),
        ({"a": {"b": 3}}, "since those start with $; ask for a nested field by a dot: 'a.b'."),
        ({"a": {}}, f"field 'a' has no operator; allowed: {ALL_OPERATORS}. Any value at all is {{\"$exists\": true}}."),
        ({"a": {"$in": "x"}}, "field 'a': $in needs a list, got 'x'. Write ['x']."),
        ({"a": {"$nin": None}}, "field 'a': $nin needs a list, got None."),
        ({"a": {"$in": [1] * 1001}}, "field 'a': $in lists 1001 values; at most 1000 are allowed. Split it with $or."),
        ({"a": [1] * 1001}, "field 'a': $eq lists 1001 values; at most 1000 are allowed."),
        (
            {"a": {"$in": [[1]]}},
            "field 'a': $in got [1]; allowed: null, true, false, numbers and strings. Flatten a list;",
        ),
        ({"a": {"$eq": {"b": 1}}}, "field 'a': $eq got {'b': 1}; allowed: null, true, false, numbers and strings."),
        ({"a": [{"b": 1}]}, "field 'a': $eq got {'b': 1};"),
        ({"a": {"$exists": 1}}, "field 'a': $exists needs true or false, got 1. Write one of them."),
        ({"a": {"$gt": True}}, "field 'a': $gt needs a number or a string, got True. Other values take $eq or $in."),
        ({"a": {"$lte": None}}, "field 'a': $lte needs a number or a string, got None."),
        ({"a": {"$lt": [1]}}, "field 'a': $lt needs a number or a string, got [1]."),
        ({"a": math.nan}, "field 'a': $eq got nan; allowed: finite numbers. Leave the condition out"),
        ({"a": {"$lt": math.inf}}, "field 'a': $lt got inf; allowed: finite numbers."),
        ({"a": {"$in": [1, -math.inf]}}, "field 'a': $in got -inf; allowed: finite numbers."),
        ({"": 1}, "'' names no field; allowed: a string of 1 to 256 characters."),
        ({5: 1}, "5 names no field; allowed: a string of 1 to 256 characters."),
        ({"a": {5: 1}}, "5 names no field;"),
        ({"x" * 257: 1}, "has 257 characters; at most 256 are allowed. Shorten it."),
        ({"a": {"$" * 100_000: 1}}, "has 100000 characters; at most 256 are allowed."),
        (nested(17), "the filter nests deeper than 16 levels, the most allowed. Flatten it."),
        (
            {"$or": [{"a": 1}] * 257},
            "the filter has more than 256 conditions, the most allowed. Write the alternatives",
        ),
        ({"$and": [{}] * 257}, "the filter has more than 256 conditions"),
    ],
)
def test_filter_refuses_what_it_does_not_understand_with_value_limit_and_fix(raw, message):
    with pytest.raises(InvalidRequest, match=re.escape(message)) as caught:
        parse_filter(raw)
    assert caught.value.param == "filter"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["$", "$x", "$regex", "$elemMatch", "$text", "$nor", "$AND", "$eq ", " $eq"])
def test_filter_refuses_every_unknown_operator_by_name(key):
    with pytest.raises(InvalidRequest, match=re.escape(repr(key))):
        parse_filter({"a": {key: 1}})


@pytest.mark.parametrize(
    "raw",
    [
        nested(16),
        {"$or": [{"a": 1}] * 256},
        {"a": {"$in": list(range(1000))}},
        {"x" * 256: 1},
    ],
)
def test_filter_at_a_limit_is_accepted(raw):
    parse_filter(raw)


def test_filter_refuses_a_filter_of_any_depth_without_exhausting_the_stack():
    raw: dict = {}
    for _ in range(100_000):
        raw = {"$not": raw}
    with pytest.raises(InvalidRequest, match="deeper than 16 levels"):
        parse_filter(raw)
