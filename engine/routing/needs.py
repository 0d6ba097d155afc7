"""What has to be found out about a question before a router can decide: nothing is searched that no arm needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.routing.arms import Arm, parse_arm
from engine.values import BASE_MODEL, Route


@dataclass(frozen=True, slots=True)
class Plan:
    """searches: look for passages first. wants_clues: with the clues that signals are made of. embeds: the embedding
    is enough, and passages are looked for once an arm with context is chosen.
    """

    searches: bool
    wants_clues: bool = False
    embeds: bool = False


@dataclass(frozen=True, slots=True)
class Needs:
    """Of the router of one collection: its name, the arms that it may choose, best first, whether it reads signals, and
    whether any of these come from the search. Without arms it is the score rule.
    """

    router: str
    arms: tuple[str, ...] = ()
    weighs: bool = False
    reads_search: bool = True

    def plan(self, model: str | None, pinned: Route | None) -> Plan:
        """For a question to `model` (None: any) whose route may be `pinned`."""
        arms = arms_of(self.arms, model, pinned)
        if not arms or (model is not None and len(arms) == 1):
            return Plan(searches=pinned != "direct")
        if not self.weighs or len(arms) == 1:
            return Plan(searches=arms[0].has_context)
        if self.reads_search or pinned == "rag":
            return Plan(searches=True, wants_clues=True)
        return Plan(searches=False, embeds=True)


def arms_of(names: Iterable[str], model: str | None, pinned: Route | None) -> list[Arm]:
    """Those of the arms that a request for `model` (None: any) with that pinned route leaves."""
    arms = map(parse_arm, names)
    return [
        arm
        for arm in arms
        if (model is None or (arm.adapter or BASE_MODEL) == model) and (pinned is None or arm.route == pinned)
    ]
