"""The question back, where a question has several readings: built from what the competing passages are about.

Competing are passages of other documents, or of other sections of the one document, that score nearly as well as the
best. Their shortest names that tell them apart are the options. Titles are data: they are shown, never obeyed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.routing.signals.lexical import content_words, plain_words
from engine.values import Message, Passage

MAX_OPTIONS = 4
# A passage of a lower share of the best score does not compete with it.
NEAR_SHARE = 0.8
# A line of an option; longer names end in an ellipsis.
MAX_CHARS = 72
OPENING = "This question has more than one reading. Which do you mean?"
# Between the parts of a title that many pages of a site share: "Volumes | Fly Docs".
_SEPARATOR = re.compile(r"\s+[|–—·:>-]\s+|:\s+")


@dataclass(frozen=True, slots=True)
class Clarification:
    """Readings of a question, the likeliest first: a short name of each, and the passage that it is the name of."""

    options: tuple[str, ...]
    passages: tuple[Passage, ...]

    @property
    def text(self) -> str:
        """The question back."""
        return "\n".join([OPENING, *(f"- {option}" for option in self.options)])

    @property
    def assumed(self) -> str:
        """What an answer begins with that is given without asking."""
        return f"Taking this to be about {self.options[0]}:\n\n"


def clarification(question: str, passages: Sequence[Passage]) -> Clarification | None:
    """What could be asked back; None where the passages name no competing readings.

    Args:
        question: as it was searched; one that itself names one of the readings has been clear about it.
        passages: ranked, the best first.
    """
    readings = _competing(passages)
    names = _telling_names(readings)
    options: dict[str, tuple[str, Passage]] = {}
    for name, passage in zip(names, readings, strict=True):
        if name:
            options.setdefault(name.casefold(), (name, passage))
    chosen = list(options.values())[:MAX_OPTIONS]
    if len(chosen) < 2 or _names_one(question, [name for name, _ in chosen]):
        return None
    return Clarification(tuple(name for name, _ in chosen), tuple(passage for _, passage in chosen))


def was_asked(messages: Sequence[Message]) -> bool:
    """Whether the last answer of the conversation was a question back: nobody is asked twice in a row."""
    answers = [message.content for message in messages if message.role == "assistant"]
    return bool(answers) and answers[-1].startswith(OPENING)


class ShareCap:
    """Lets at most a share of the last decisions through, the one at hand among them. No clock and no chance."""

    def __init__(self, max_share: float, window: int) -> None:
        self._max_share = max_share
        self._past: deque[bool] = deque(maxlen=window - 1)

    def admits(self, wanted: bool) -> bool:
        """Count a decision; whether it may be what is capped. The first ones of a short past rarely may."""
        # The error of a product such as 0.1 * 30 must not cost a place.
        admitted = wanted and sum(self._past) + 1 <= self._max_share * (len(self._past) + 1) + 1e-9
        self._past.append(admitted)
        return admitted


def _competing(passages: Sequence[Passage]) -> list[Passage]:
    """The best passage of each competing document; of each section where there is one document."""
    least = NEAR_SHARE * passages[0].score if passages else 0.0
    near = [passage for passage in passages if passage.score >= least]
    documents = {passage.document: passage for passage in reversed(near)}
    if len(documents) > 1:
        return [passage for passage in near if documents[passage.document] is passage]
    sections = {passage.heading: passage for passage in reversed(near)}
    return [passage for passage in near if sections[passage.heading] is passage]


def _telling_names(readings: Sequence[Passage]) -> list[str]:
    """A name of each reading: the shorter kind of name where it tells all apart, else the kind that tells most."""
    if len({each.document for each in readings}) > 1:
        kinds: list[Callable[[Passage], str]] = [lambda each: each.title, _path, lambda each: each.document]
    else:
        kinds = [lambda each: each.heading.split(" > ")[-1], _path]
    named = [
        [_short(name) for name in _without_shared_ends([_plain(kind(each)) for each in readings])] for kind in kinds
    ]
    # max() keeps the first of equals.
    return max(named, key=lambda names: len({name.casefold() for name in names if name}))


def _path(passage: Passage) -> str:
    """Title and sections; most pages repeat their title as the first heading."""
    title, heading = passage.title, passage.heading
    if heading == title or heading.startswith(f"{title} > "):
        return heading
    return " > ".join(part for part in (title, heading) if part)


def _without_shared_ends(names: list[str]) -> list[str]:
    """Without the parts that all names begin or end with: the name of the site or the manual."""
    parts = [_SEPARATOR.split(name) for name in names]
    while parts and min(map(len, parts)) > 1 and len({each[-1] for each in parts}) == 1:
        names = [name[: -len(_tail(name))] for name in names]
        parts = [each[:-1] for each in parts]
    while parts and min(map(len, parts)) > 1 and len({each[0] for each in parts}) == 1:
        names = [_SEPARATOR.split(name, maxsplit=1)[1] for name in names]
        parts = [each[1:] for each in parts]
    return names


def _tail(name: str) -> str:
    """The last separator of `name` and what is behind it."""
    return name[[found.start() for found in _SEPARATOR.finditer(name)][-1] :]


def _plain(name: str) -> str:
    """On one line, without what a terminal or a page might obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split())


def _short(name: str) -> str:
    """At most MAX_CHARS, cut between words where there are any."""
    if len(name) <= MAX_CHARS:
        return name
    cut = name[: MAX_CHARS - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut else cut).rstrip(" ,;:-") + "…"


def _names_one(question: str, options: Sequence[str]) -> bool:
    """Whether the question has most of the words that tell one option from the others."""
    asked = _stems(question)
    words = [_stems(option) for option in options]
    for place, mine in enumerate(words):
        others = set().union(*(each for other, each in enumerate(words) if other != place))
        telling = mine - others
        if telling and 2 * len(telling & asked) > len(telling):
            return True
    return False


def _stems(text: str) -> set[str]:
    """Content words without the s of a plural."""
    return {word.removesuffix("s") if len(word) > 3 else word for word in content_words(plain_words(text))}
