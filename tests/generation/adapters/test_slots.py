"""Who gets a slot: the policy by example, and its promises over random histories."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.generation.adapters.slots import SlotTable


def test_adapter_keeps_its_slot():
    table = SlotTable(2)
    assert table.claim("a", in_use=()) == table.claim("a", in_use=("a",)) == table.slot_of("a")
    assert table.claim("b", in_use=("a",)) != table.slot_of("a")
    assert table.num_swaps == 2


def test_idle_adapter_used_least_recently_gives_way():
    table = SlotTable(2)
    for name in ("a", "b", "a"):
        table.tick()
        table.claim(name, in_use=())
    table.tick()
    table.claim("c", in_use=())
    assert table.slot_of("b") is None and table.slot_of("a") is not None


def test_idle_adapter_that_others_wait_for_gives_way_last():
    table = SlotTable(2)
    for name in "ab":
        table.tick()
        table.claim(name, in_use=())
    table.claim("c", in_use=(), wanted=("a",))
    assert table.slot_of("a") is not None and table.slot_of("b") is None


def test_no_slot_is_taken_from_a_running_adapter():
    table = SlotTable(1)
    table.claim("a", in_use=())
    assert table.claim("b", in_use=("a",)) is None
    assert not table.has_vacancy(("a",)) and table.has_vacancy(())


def test_only_younger_adapters_are_displaced_and_only_after_some_steps():
    table = SlotTable(2, min_resident_steps=3)
    for name in "ab":
        table.claim(name, in_use=())
    oldest = {"a": 5, "b": 9}
    assert table.displaced_by(4, oldest) is None  # neither had its steps
    for _ in range(3):
        table.tick()
    assert table.displaced_by(4, oldest) == "b"
    assert table.displaced_by(7, oldest) == "b"
    assert table.displaced_by(10, oldest) is None


def test_released_slot_is_free():
    table = SlotTable(1)
    table.claim("a", in_use=())
    table.release("a")
    table.release("a")
    assert table.claim("b", in_use=("a",)) == 0


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_slots_hold_one_adapter_each_and_never_change_under_a_running_one(data: st.DataObject):
    num_slots = data.draw(st.integers(1, 4))
    table = SlotTable(num_slots, min_resident_steps=2)
    in_use: dict[str, int] = {}
    for arrival in range(data.draw(st.integers(1, 40))):
        table.tick()
        name = data.draw(st.sampled_from("abcdefgh"))
        action = data.draw(st.sampled_from(["claim", "end", "release", "displace"]))
        before = {running: table.slot_of(running) for running in in_use}
        if action == "claim":
            slot = table.claim(name, in_use=in_use, wanted=data.draw(st.sets(st.sampled_from("abcdefgh"))))
            assert (slot is None) == (name not in in_use and len(in_use) == num_slots)
            if slot is not None:
                in_use.setdefault(name, arrival)
        elif action == "end":
            in_use.pop(name, None)
        elif action == "release" and name not in in_use:
            table.release(name)
            assert table.slot_of(name) is None
        elif action == "displace":
            victim = table.displaced_by(0, in_use)
            assert victim is None or in_use[victim] > 0
        assert all(table.slot_of(running) == slot for running, slot in before.items())
        held = [table.slot_of(running) for running in in_use]
        assert None not in held and len(set(held)) == len(held)
        assert table.has_vacancy(in_use) == (len(in_use) < num_slots)
