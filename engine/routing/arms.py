"""Arms: who answers (the base model or an adapter), and whether passages are in the prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from engine.values import Route

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CONTEXT = "+context"
# What a request says by these is no adapter.
_RESERVED = ("auto", "clarify", "abstain")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer a question. `adapter` None is the base model."""

    adapter: str | None
    has_context: bool

    @property
    def name(self) -> str:
        """`base`, `base+context`, `<adapter>` or `<adapter>+context`."""
        return (self.adapter or "base") + (_CONTEXT if self.has_context else "")

    @property
    def route(self) -> Route:
        """The route that it answers by."""
        return "rag" if self.has_context else "direct"


# Of a few names, for every question.
@lru_cache(maxsize=1_024)
def parse_arm(name: str) -> Arm:
    """The arm of that name. Raises: ValueError saying what a name looks like."""
    who = name.removesuffix(_CONTEXT)
    if not _NAME.fullmatch(who) or who in _RESERVED:
        raise ValueError(
            f"arm {name[:80]!r} is no arm; write base, base+context, or the name of an adapter with or without +context"
        )
    return Arm(None if who == "base" else who, name.endswith(_CONTEXT))
