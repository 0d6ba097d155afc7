"""Which passages a question is trained with: golden ones at their rank, and none for a share."""

from __future__ import annotations

from engine.tuning.data.rows import QuestionRow
from engine.tuning.tasks.passages import is_golden, loses_golden, with_golden, without_golden
from engine.values import Passage

ROW = QuestionRow(1, "How tall is it?", ("330 m",), document="tower.md")


def passage(chunk: str, text: str, document: str = "other.md") -> Passage:
    return Passage(chunk, document, "", "", text, 0, len(text), 0.5)


GOLD = passage("gold", "The tower is 330 M tall.", "tower.md")
FAKE = passage("fake", "A crane is 330 m tall.")
NOISE = [passage(f"n{i}", f"Nothing to see, part {i}.") for i in range(6)]


def test_golden_passage_holds_an_answer_and_is_from_where_the_row_says():
    assert is_golden(GOLD, ROW)
    assert not is_golden(FAKE, ROW)
    assert not is_golden(passage("n", "The tower is tall.", "tower.md"), ROW)
    by_context = QuestionRow(1, "?", ("330 m",), context="The tower is 330 m tall. It stands in Paris.")
    assert is_golden(passage("cut", "tower is 330 m tall."), by_context)
    assert not is_golden(passage("far", "330 m of cable lie below the western bridge over there"), by_context)
    assert is_golden(FAKE, QuestionRow(1, "?", ("330 m",)))


def test_golden_passage_keeps_its_rank_and_takes_the_last_place_from_below():
    assert with_golden(ROW, [NOISE[0], GOLD, NOISE[1], NOISE[2]], 3, 0) == (NOISE[0], GOLD, NOISE[1])
    assert with_golden(ROW, [*NOISE[:4], GOLD], 3, 0) == (NOISE[0], NOISE[1], GOLD)


def test_golden_passage_that_is_not_found_is_the_context_or_none():
    assert with_golden(ROW, NOISE, 3, 0) is None
    places = set()
    for line in range(40):
        row = QuestionRow(line, f"How tall {line}?", ("330 m",), context="It is 330 m tall.", document="tower.md")
        shown = with_golden(row, NOISE, 3, 0)
        assert shown is not None and len(shown) == 3
        (place,) = [i for i, each in enumerate(shown) if each.text == row.context]
        assert [each for each in shown if each.text != row.context] == NOISE[:2]
        assert shown == with_golden(row, NOISE, 3, 0)
        places.add(place)
    assert places == {0, 1, 2}


def test_distractors_hold_no_answer():
    assert without_golden(ROW, [NOISE[0], GOLD, FAKE, NOISE[1], NOISE[2]], 2) == (NOISE[0], NOISE[1])


def test_share_without_golden_passage_is_drawn_by_content_and_seed():
    rows = [QuestionRow(line, f"How tall is number {line}?", ("330 m",)) for line in range(1000)]
    drawn = [loses_golden(row, 0.2, 3) for row in rows]
    assert 150 < sum(drawn) < 250
    assert drawn == [loses_golden(row, 0.2, 3) for row in rows]
    assert drawn != [loses_golden(row, 0.2, 4) for row in rows]
    assert not any(loses_golden(row, 0.0, 3) for row in rows)
