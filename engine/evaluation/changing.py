"""The same question as another hand would type it: seeded typos, another surface, and paraphrases that a file brings.

What is asked stays the same, so a route that changes its mind does so for no reason.
"""

from __future__ import annotations

import random
import re

from engine.evaluation.questions import Question

TYPOS, SURFACE, PARAPHRASES = "typos", "lower case, no final mark", "paraphrases"
KINDS = (TYPOS, SURFACE, PARAPHRASES)

_WORDS_PER_TYPO = 6
# Letters that no digit or underscore touches: names, numbers and codes with digits stay what they are.
_LONG_WORD, _SHORT_WORD = (re.compile(rf"(?<!\w)[^\W\d_]{{{size},}}(?!\w)") for size in (3, 2))
_FINAL_MARKS = " \t\n.?!…。？！"
_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def changed_texts(question: Question, seed: int) -> dict[str, tuple[str, ...]]:
    """The texts of each kind that differ from the question as it was written; a kind may have none.

    Typos are drawn by seed and id: the same ones on any machine, whatever other questions there are.
    """
    draw = random.Random(f"{seed}\n{TYPOS}\n{question.id}")
    found = {
        TYPOS: (with_typos(question.question, draw),),
        SURFACE: (plain_surface(question.question),),
        PARAPHRASES: question.paraphrases,
    }
    return {kind: tuple(text for text in texts if text and text != question.question) for kind, texts in found.items()}


def plain_surface(text: str) -> str:
    """In lower case, without marks at its end."""
    return text.lower().rstrip(_FINAL_MARKS)


def with_typos(text: str, draw: random.Random) -> str:
    """`text` with a typo in one word of six, in one at least, where it has a word of two letters or more."""
    places = [*_LONG_WORD.finditer(text)] or [*_SHORT_WORD.finditer(text)]
    num = min(len(places), max(1, round(len(text.split()) / _WORDS_PER_TYPO)))
    # From the last on, so that the places before it stay.
    for place in sorted(draw.sample(places, num), key=lambda each: -each.start()):
        text = text[: place.start()] + _mistyped(place[0], draw) + text[place.end() :]
    return text


def _mistyped(word: str, draw: random.Random) -> str:
    """With one typo of a kind that this word can have."""
    ways = [way for way in (_swaps, _drops, _doubles, _neighbours) if way(word)]
    return draw.choice(draw.choice(ways)(word))


def _swaps(word: str) -> list[str]:
    return [
        word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(len(word) - 1) if word[at] != word[at + 1]
    ]


def _drops(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at in range(len(word))]


def _doubles(word: str) -> list[str]:
    return [word[: at + 1] + word[at:] for at in range(len(word))]


def _neighbours(word: str) -> list[str]:
    return [
        word[:at] + (key.upper() if letter.isupper() else key) + word[at + 1 :]
        for at, letter in enumerate(word)
        for key in _NEXT_KEYS.get(letter.lower(), "")
    ]


def _next_keys() -> dict[str, str]:
    """The keys that touch each letter's key on a QWERTY keyboard, whose rows are shifted by half a key."""
    found = {}
    for row, keys in enumerate(_KEY_ROWS):
        for at, key in enumerate(keys):
            touching = [
                (row, at - 1),
                (row, at + 1),
                (row - 1, at),
                (row - 1, at + 1),
                (row + 1, at - 1),
                (row + 1, at),
            ]
            found[key] = "".join(
                _KEY_ROWS[r][c] for r, c in touching if 0 <= r < len(_KEY_ROWS) and 0 <= c < len(_KEY_ROWS[r])
            )
    return found


_NEXT_KEYS = _next_keys()
