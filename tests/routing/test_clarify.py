"""The question back: from titles and sections alone, and only where they compete."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.clarify import MAX_CHARS, MAX_OPTIONS, OPENING, ShareCap, clarification, was_asked
from engine.values import Message, Passage


def passage(document: str, title: str = "", heading: str = "", score: float = 0.8) -> Passage:
    return Passage(f"{document}#{heading}", document, title, heading, "text", 0, 4, score)


def options(question: str, *passages: Passage) -> tuple[str, ...] | None:
    found = clarification(question, passages)
    return None if found is None else found.options


TWO = (passage("a.md", "Install on Linux"), passage("b.md", "Install on macOS"))


def test_the_question_back_names_the_titles_of_competing_documents():
    found = clarification("how do I install it", TWO)
    assert found is not None
    assert found.options == ("Install on Linux", "Install on macOS")
    assert found.passages == TWO
    assert found.text == f"{OPENING}\n- Install on Linux\n- Install on macOS"
    assert found.assumed == "Taking this to be about Install on Linux:\n\n"


@pytest.mark.parametrize("question", ["how do I install it on Linux", "linux or macos?", "Install on macOS"])
def test_a_question_that_names_a_reading_is_not_asked_back(question):
    assert options(question, *TWO) is None


def test_one_word_of_several_that_tell_a_reading_apart_does_not_name_it():
    clinics = (passage("a", "Eagle Rock Clinic services"), passage("b", "Auburn Clinic opening hours"))
    assert options("what services does the clinic provide", *clinics) is not None
    assert options("what services does the Eagle Rock clinic provide", *clinics) is None


def test_a_plural_names_its_singular():
    assert options("how are snapshots made", passage("a", "Volume snapshot"), passage("b", "Volume backup")) is None


def test_a_document_far_behind_the_best_does_not_compete():
    assert options("install", passage("a", "Linux", score=0.9), passage("b", "macOS", score=0.5)) is None


def test_sections_compete_where_there_is_one_document():
    found = options("how do I resize", passage("a", "Volumes", "Volumes > Extend"), passage("a", "Volumes", "Usage"))
    assert found == ("Extend", "Usage")


def test_sections_of_equal_names_are_told_apart_by_those_above():
    found = options(
        "install", passage("a", "Guide", "Guide > Linux > Steps"), passage("a", "Guide", "Guide > BSD > Steps")
    )
    assert found == ("Linux", "BSD")


def test_documents_of_one_title_are_told_apart_by_their_sections_or_ids():
    assert options("q", passage("a", "Volumes", "Price"), passage("b", "Volumes", "Limits")) == ("Price", "Limits")
    assert options("q", passage("docs/a.md", "Volumes"), passage("docs/b.md", "Volumes")) == ("docs/a.md", "docs/b.md")


def test_what_all_titles_share_is_left_out():
    found = options("q", passage("a", "Acme: Disks | Acme Docs"), passage("b", "Acme: Keys | Acme Docs"))
    assert found == ("Disks", "Keys")


def test_one_reading_is_none():
    assert options("q") is None
    assert options("q", passage("a", "Volumes")) is None
    assert options("q", passage("a", "Volumes", "Price"), passage("a", "Volumes", "Price")) is None


def test_a_title_is_shown_on_one_line_without_control_characters():
    found = options("q", passage("a", "One\n- Two\x1b[31m\u202e"), passage("b", "Three"))
    assert found == ("One - Two [31m", "Three")


names = st.text(max_size=90)
passages = st.builds(
    passage, st.sampled_from(["a", "b", "c", "d", "e"]), names, names, st.floats(-1, 1, allow_nan=False)
)


@given(st.text(max_size=60), st.lists(passages, max_size=8))
def test_options_are_two_to_four_different_lines_of_documents_that_were_found(question, found):
    ranked = sorted(found, key=lambda each: -each.score)
    asked = clarification(question, ranked)
    assert asked == clarification(question, ranked)
    if asked is None:
        return
    assert 2 <= len(asked.options) <= MAX_OPTIONS
    assert len({option.casefold() for option in asked.options}) == len(asked.options) == len(asked.passages)
    assert all(0 < len(option) <= MAX_CHARS and len(option.splitlines()) == 1 for option in asked.options)
    assert {*asked.passages} <= {*ranked}


def test_nobody_is_asked_twice_in_a_row():
    asked = Message("assistant", f"{OPENING}\n- a\n- b")
    user = Message("user", "install")
    assert was_asked((user, asked, user))
    assert not was_asked((user,))
    assert not was_asked((user, asked, user, Message("assistant", "Like this."), user))


def test_a_cap_lets_a_tenth_of_the_decisions_through_at_any_time():
    cap = ShareCap(0.1, window=50)
    admitted = [cap.admits(True) for _ in range(500)]
    assert admitted[:10] == [False] * 9 + [True]
    for end in range(1, 501):
        last = admitted[max(0, end - 50) : end]
        assert sum(last) <= 0.1 * len(last) + 1e-9
    assert sum(admitted) == 50


def test_a_cap_counts_decisions_that_were_clear():
    cap = ShareCap(0.1, window=50)
    assert [cap.admits(False) for _ in range(9)] == [False] * 9
    assert cap.admits(True)


@given(st.floats(0, 1), st.integers(1, 40), st.lists(st.booleans(), max_size=120))
def test_a_cap_holds_over_its_window(share, window, wanted):
    cap = ShareCap(share, window)
    admitted = [cap.admits(each) for each in wanted]
    for end in range(1, len(wanted) + 1):
        last = admitted[max(0, end - window) : end]
        assert sum(last) <= share * len(last) + 1e-6
    assert not any(through and not each for through, each in zip(admitted, wanted, strict=True))
