"""Names of arms, and digests that agree or do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_outcomes import KEYS

from engine.routing.arms import Arm, parse_arm
from engine.routing.keys import keys_from_json


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("base", Arm(None, False)),
        ("base+context", Arm(None, True)),
        ("support-bot", Arm("support-bot", False)),
        ("support-bot+context", Arm("support-bot", True)),
    ],
)
def test_arm_is_read_from_its_name_and_named_so_again(name, arm):
    assert parse_arm(name) == arm
    assert arm.name == name
    assert arm.route == ("rag" if arm.has_context else "direct")


@pytest.mark.parametrize("name", ["", "+context", "a b", "auto", "clarify", "../x", "base+context+context", "x" * 65])
def test_what_is_no_arm_is_refused_by_name(name):
    with pytest.raises(ValueError, match="is no arm; write base"):
        parse_arm(name)


def test_keys_come_back_from_json():
    keys = replace(KEYS, others={"prompt": "p1"})
    assert keys_from_json(keys.to_json()) == keys


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "not an object"),
        ({}, "'model'.*is missing"),
        ({"model": None}, "'model' must be a text"),
        ({"model": 3}, "'model' must be a text"),
        ({"model": "m", "adapters": {"a": 1}}, "'adapters' must be an object"),
        ({"model": "m", "index": ""}, "'index' must be a text"),
    ],
)
def test_keys_of_another_shape_are_refused_by_name(content, said):
    with pytest.raises(ValueError, match=said):
        keys_from_json(content)


def test_differences_of_keys_are_said_in_words():
    assert KEYS.differences(KEYS) == []
    other = replace(KEYS, index=None, adapters={"support": "adapter-2", "new": "n"})
    assert KEYS.differences(other) == ["index is none, was index-1", "adapter support is adapter-2, was adapter-1"]
    assert KEYS.differences(replace(KEYS, adapters={})) == []
