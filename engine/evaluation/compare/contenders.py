"""Which arms are compared: those that a server has, and those that are asked for by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import SwitchyardError
from engine.routing.arms import Arm, parse_arm

AUTO, FEW_SHOT = "auto", "few-shot"
Kind = Literal["base", "adapter", "few-shot", "auto"]


class UnknownArm(SwitchyardError):
    """An arm is asked for that the server does not have."""

    code = "unknown_arm"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer all questions. `digest` is that of an adapter's weights, `verdict` what the guard said of its
    data, `data_digest` that of the data.
    """

    name: str
    kind: Kind
    arm: Arm
    task: str | None = None
    digest: str | None = None
    verdict: str | None = None
    data_digest: str | None = None

    @property
    def may_show_passages(self) -> bool:
        """Whether passages are in its prompts, always or by choice of the router."""
        return self.arm.has_context or self.kind == "auto"

    @property
    def adapter(self) -> str | None:
        """The adapter that it is."""
        return self.arm.adapter if self.kind == "adapter" else None


def choose_contenders(
    asked: Sequence[str] | None, adapters: Sequence[Mapping[str, Any]], *, has_passages: bool, has_examples: bool
) -> tuple[Contender, ...]:
    """The arms to compare, the base model's first.

    Args:
        asked: names of arms; None takes all that make sense: an adapter with labels is not shown passages.
        adapters: the cards of GET /v1/adapters.
        has_passages: the collection holds something.
        has_examples: there are training examples to show.
    Raises: ValueError for what is no name of an arm; UnknownArm for one that cannot answer.
    """
    cards = {card["name"]: card for card in adapters}
    names = _all_names(cards, has_passages=has_passages, has_examples=has_examples) if asked is None else [*asked]
    if not names:
        raise ValueError("no arm is named; write base,base+context, or leave --arms out")
    found = []
    for name in dict.fromkeys(names):
        contender = _contender(name, cards)
        if contender.arm.has_context and not has_passages:
            raise UnknownArm(
                f"arm {name} is to show passages, but the collection is empty. Add documents with `switchyard ingest`, "
                "name another --collection, or leave out the arm."
            )
        if contender.kind == FEW_SHOT and not has_examples:
            raise UnknownArm("arm few-shot needs training examples to show: --few-shot TRAIN.jsonl.")
        found.append(contender)
    return tuple(found)


def _all_names(cards: Mapping[str, Mapping[str, Any]], *, has_passages: bool, has_examples: bool) -> list[str]:
    names = ["base", *(["base+context"] if has_passages else [])]
    for name, card in cards.items():
        if card["loaded"]:
            names.append(name)
            if has_passages and card.get("task") != "classify":
                names.append(f"{name}+context")
    return [*names, *([FEW_SHOT] if has_examples else []), *([AUTO] if has_passages else [])]


def _contender(name: str, cards: Mapping[str, Mapping[str, Any]]) -> Contender:
    if name in (AUTO, FEW_SHOT) and name not in cards:
        kind: Kind = "auto" if name == AUTO else "few-shot"
        return Contender(name, kind, Arm(name, False))
    arm = parse_arm(name)
    if arm.adapter is None:
        return Contender(name, "base", arm)
    card = cards.get(arm.adapter)
    if card is None:
        known = ", ".join(sorted(cards)) or "none"
        raise UnknownArm(
            f"there is no arm {name}: the server has no adapter {arm.adapter!r}; it has: {known}. Other arms are base, "
            "base+context, few-shot and auto."
        )
    if not card["loaded"]:
        why = f" ({card['error']})" if card.get("error") else ""
        raise UnknownArm(
            f"arm {name} cannot answer: adapter {arm.adapter!r} is not loaded{why}. "
            f"Load it with `switchyard adapters load {arm.adapter}`."
        )
    return Contender(
        name, "adapter", arm, card.get("task"), card.get("digest"), card.get("verdict"), card.get("data_digest")
    )
