"""Changed questions ask the same: seeded, a typo in one word of six, no digit touched."""

from __future__ import annotations

import random

import pytest

from engine.evaluation.changing import PARAPHRASES, SURFACE, TYPOS, changed_texts, plain_surface, with_typos
from engine.evaluation.questions import Question

LONG = "How do I move the volume of my database from one region to another without losing any of its data?"


def typed(text, seed=0):
    return with_typos(text, random.Random(seed))


def edits(one, other):
    """The restricted edit distance: insert, delete, replace, swap of neighbours (Wagner and Fischer, with swaps)."""
    rows = [[*range(len(other) + 1)]]
    for i, left in enumerate(one, 1):
        row = [i]
        for j, right in enumerate(other, 1):
            best = min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (left != right))
            if i > 1 and j > 1 and one[i - 2 : i] == other[j - 2 : j][::-1]:
                best = min(best, rows[i - 2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@pytest.mark.parametrize("seed", range(20))
def test_one_word_of_six_gets_one_typo(seed):
    # 20 words: 3 of them.
    found = typed(LONG, seed)
    pairs = [*zip(LONG.split(), found.split(), strict=True)]
    changed = [(one, other) for one, other in pairs if one != other]
    assert len(changed) == 3
    assert all(edits(one, other) == 1 for one, other in changed)


def test_short_question_gets_one_typo_at_least():
    for seed in range(20):
        assert edits("Who?", typed("Who?", seed)) == 1
        assert edits("Is it so?", typed("Is it so?", seed)) == 1, "where no word has three letters, two will do"


def test_every_way_to_mistype_is_drawn():
    found = {typed("walk", seed) for seed in range(400)}
    assert {"awlk", "wlak", "wakl"} <= found, "neighbours swapped"
    assert {"alk", "wlk", "wak", "wal"} <= found, "a letter dropped"
    assert {"wwalk", "waalk", "wallk", "walkk"} <= found, "a letter doubled"
    assert {"qalk", "ealk", "aalk", "salk", "wqlk", "wslk", "walj", "wall"} <= found, "a key beside it"
    assert all(edits("walk", each) == 1 for each in found)
    assert "wolk" not in found, "o is far from a"
    assert "Ealk" in {typed("Walk", seed) for seed in range(400)}, "a capital stays one"


def test_digits_and_words_with_digits_are_never_touched():
    text = "Does v2 of fly_proxy42 listen on 8080 or on 443 since 2024?"
    for seed in range(50):
        words = typed(text, seed).split()
        assert [words[1], words[3], words[6], words[9], words[11]] == ["v2", "fly_proxy42", "8080", "443", "2024?"]


def test_text_without_a_word_has_no_typo():
    assert typed("2 + 2 = ?") == "2 + 2 = ?"
    assert changed_texts(Question("a", "2 + 2"), 0) == {TYPOS: (), SURFACE: (), PARAPHRASES: ()}


def test_surface_is_in_lower_case_without_marks_at_its_end():
    assert plain_surface("Where is Ada Lovelace buried? ") == "where is ada lovelace buried"
    assert plain_surface("Use 1.5 or 2.0?!") == "use 1.5 or 2.0"
    assert changed_texts(Question("a", "where is it"), 0)[SURFACE] == (), "nothing is left to change"


def test_typos_are_those_of_seed_and_id_and_of_nothing_else():
    first = changed_texts(Question("a", LONG, paraphrases=("How?",)), 3)
    assert changed_texts(Question("a", LONG), 3)[TYPOS] == first[TYPOS]
    assert first[PARAPHRASES] == ("How?",)
    assert changed_texts(Question("b", LONG), 3)[TYPOS] != first[TYPOS]
    assert changed_texts(Question("a", LONG), 4)[TYPOS] != first[TYPOS]
    # Another draw would make reports of before incomparable.
    assert changed_texts(Question("a", "Where is the key kept?"), 0)[TYPOS] == ("Where is the ley kept?",)
