"""Follow-up questions: what stands alone is left alone, what does not gets words of its conversation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.retrieval.followups import (
    MAX_ANSWER_WORDS,
    MAX_TURN_CHARS,
    MAX_TURNS,
    MAX_USER_WORDS,
    MAX_WORD_CHARS,
    standalone_query,
)
from engine.values import Message


def conversation(*turns: str) -> list[Message]:
    """User and assistant in turn, the user first."""
    return [Message("assistant" if number % 2 else "user", turn) for number, turn in enumerate(turns)]


def asked(question: str, *, before: str = "How do I resize a volume on Fly?", answer: str = "") -> str:
    return standalone_query(conversation(before, answer, question))


@pytest.mark.parametrize(
    "question",
    [
        "How long are snapshots of a Postgres database kept?",
        "Which regions offer GPU machines for inference jobs?",
        "Is there a limit on the number of certificates for each app?",
        "I read that snapshots expire after some days, which setting changes the retention?",
        "What happens to a running deployment when its health check fails?",
    ],
)
def test_a_question_that_stands_alone_is_searched_as_it_was_written(question):
    assert asked(question) == question


@pytest.mark.parametrize(
    "question",
    [
        "Can it shrink again without losing data?",
        "How much do they cost each month?",
        "What is the price of that?",
        "Does the same apply to machines in Europe?",
        "And on Postgres?",
        "What about encrypted backups stored elsewhere?",
        "how about a smaller machine with less memory?",
        "Why?",
        "Which of them survives a restart of the host?",
        "What is the difference to the other one?",
        "pricing",
        "Snapshot retention.",
        "How does it’s cost compare?",
    ],
)
def test_a_follow_up_is_searched_with_content_words_of_the_question_before(question):
    found = asked(question)
    assert found.startswith(question)
    assert found.removeprefix(question).split() == ["resize", "volume", "Fly"]


def test_the_first_question_of_a_conversation_is_unchanged_even_when_it_points_at_something():
    assert standalone_query([Message("user", " and it? ")]) == " and it? "


def test_words_are_taken_back_to_the_turn_that_stands_alone_and_no_further():
    turns = conversation(
        "How are TLS certificates renewed for custom domains?",
        "",
        "How do I attach a volume to a machine in Frankfurt?",
        "",
        "What about snapshots?",
        "",
        "Are they encrypted?",
    )
    added = standalone_query(turns).removeprefix("Are they encrypted?").split()
    assert added == ["snapshots", "attach", "volume", "machine", "Frankfurt"]


def test_words_of_the_question_and_their_plurals_are_not_repeated():
    found = asked("Are volumes safe there?", before="What is a volume's default region?")
    assert found == "Are volumes safe there? default region"


def test_names_of_the_last_answer_follow_the_words_of_the_user():
    answer = "Most people use **LiteFS** for that. It copies SQLite to every region, up to 10 of them."
    found = asked("How fast is it?", before="How do I replicate a database?", answer=answer)
    assert found == "How fast is it? replicate database LiteFS SQLite 10"


def test_only_so_many_words_are_added():
    before = "Compare " + " ".join(f"item{number}" for number in range(50))
    answer = "there " + " ".join(f"Name{number}" for number in range(50))
    added = asked("Which of those?", before=f"What about {before}", answer=answer).split()[3:]
    assert len(added) == MAX_USER_WORDS + MAX_ANSWER_WORDS
    assert added[-1] == f"Name{MAX_ANSWER_WORDS - 1}"


def test_system_text_reaches_no_search():
    turns = [Message("system", "SECRET rules of Acme"), *conversation("Resize a volume", "Done.", "and it?")]
    turns.insert(3, Message("system", "SECRET again"))
    assert "SECRET" not in standalone_query(turns)
    assert standalone_query([Message("system", "SECRET rules"), Message("user", "and it?")]) == "and it?"


def test_turns_without_text_are_passed_over():
    turns = [Message("user", "Resize a volume?"), Message("user", "  "), Message("user", "and it?")]
    assert standalone_query(turns) == "and it? Resize volume"


@pytest.mark.parametrize(
    ("before", "short", "long"),
    [
        ("Comment agrandir un volume ?", "Et sur Postgres ?", "Combien coûte une adresse IPv4 dédiée par mois ?"),
        ("Wie vergrößere ich ein Volume?", "Und Postgres?", "Was kostet eine feste Adresse in dem Tarif im Monat?"),
        ("Hoe vergroot ik een volume?", "En Postgres?", "Wat is de prijs van een vast adres of certificaat?"),
        ("如何扩大数据卷？", "为什么？", "每个月的固定地址需要多少钱？"),
        ("ボリュームを拡張するには？", "なぜ？", "固定アドレスは毎月いくらかかりますか？"),
        ("كيف أكبر وحدة التخزين؟", "لماذا؟", "كم تكلفة عنوان ثابت في كل شهر؟"),
    ],
    ids=["French", "German", "Dutch", "Chinese", "Japanese", "Arabic"],
)
def test_in_another_language_only_a_very_short_question_gets_the_one_before_in_front(before, short, long):
    assert asked(short, before=before) == f"{before} {short}"
    assert asked(long, before=before) == long


def test_a_conversation_without_a_user_message_is_refused():
    with pytest.raises(ValueError, match="no user message"):
        standalone_query([Message("system", "x"), Message("assistant", "y")])


def test_old_turns_and_the_tail_of_long_ones_are_not_looked_at():
    old = [Message("user", "and zebra?"), *[Message("user", "and it?")] * (MAX_TURNS + 1)]
    assert "zebra" not in standalone_query(old)
    assert "zebra" in standalone_query(old[:-1])
    long = "why " * MAX_TURN_CHARS + "zebra"
    assert "zebra" not in asked("and it?", before=long)


LONGEST_ADDITION = max(MAX_TURN_CHARS, (MAX_USER_WORDS + MAX_ANSWER_WORDS) * (MAX_WORD_CHARS + 1))


@given(
    st.lists(
        st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text() | st.sampled_from(["and it?"])),
        max_size=6,
    ),
    st.text(min_size=1),
)
def test_any_text_gives_the_question_with_a_bounded_addition(before, question):
    turns = [*before, Message("user", question)]
    found = standalone_query(turns)
    assert question.strip() in found
    assert len(found) <= len(question) + 1 + LONGEST_ADDITION
    assert found == standalone_query(turns)
