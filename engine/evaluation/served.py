"""What a server has to answer with, and what it knows of questions before it answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import SwitchyardError
from engine.evaluation.asking import Server, base_model_name
from engine.http_errors import ServerError
from engine.routing.arms import parse_arm
from engine.routing.keys import Keys, keys_from_json

# The server takes 64 at once; fewer leave it time for others.
BATCH = 32
# Where the server's router has outcomes of questions, those may be these: their signals would tell the answer.
_OF_OUTCOMES = "past."
# Batches of other sizes give other values from there on.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Served:
    """`keys` name what answers. `arms` can answer now; of `labelled` adapters, passages are of no use to the answer."""

    base_model: str
    keys: Keys
    arms: tuple[str, ...]
    labelled: frozenset[str] = frozenset()

    @property
    def defaults(self) -> tuple[str, ...]:
        """The arms that it makes sense to measure."""
        return tuple(
            arm for arm in self.arms if not (parse_arm(arm).has_context and parse_arm(arm).adapter in self.labelled)
        )

    def can_answer(self, arm: str) -> bool:
        """Whether the arm can; that with passages of a labelled adapter may be listed or not."""
        adapter = parse_arm(arm).adapter
        return arm in self.arms or (adapter in self.labelled and {adapter, "base+context"} <= {*self.arms})

    def keys_of(self, arms: Sequence[str]) -> Keys:
        """The keys that outcomes of these arms rest on."""
        adapters = {parse_arm(arm).adapter for arm in arms}
        return replace(
            self.keys, adapters={name: digest for name, digest in self.keys.adapters.items() if name in adapters}
        )

    def choose(self, arms: Sequence[str] | None) -> tuple[str, ...]:
        """The arms asked for, or the defaults. Raises: SwitchyardError naming one that cannot answer, and the fix."""
        if arms is None:
            return self.defaults
        chosen = tuple(dict.fromkeys(arms))
        for arm in chosen:
            try:
                adapter = parse_arm(arm).adapter
            except ValueError as error:
                raise SwitchyardError(f"{error}.") from None
            if not self.can_answer(arm):
                fix = f"Load the adapter: switchyard adapters load {adapter}." if adapter else "Add documents first."
                raise SwitchyardError(f"arm {arm!r} cannot answer now; {', '.join(self.arms)} can. {fix}")
        if not chosen:
            raise SwitchyardError(f"--arms names no arm; there are: {', '.join(self.arms)}.")
        return chosen


@dataclass(frozen=True, slots=True)
class Signals:
    """What can be known of a question before it is answered; `embedding` None where it was not asked for."""

    values: dict[str, float | None]
    embedding: tuple[float, ...] | None


async def read_served(server: Server, collection: str | None = None) -> Served:
    """What `server` answers with from `collection` (None: its default one).

    Raises: ServerUnreachable, ServerError; SwitchyardError where the server cannot say.
    """
    state = await _route(server, {"input": "What is this?", "collection": collection, "signals": False})
    cards = (await server.call("GET", "/v1/adapters"))["data"]
    return Served(
        base_model=await base_model_name(server),
        keys=_keys(state["keys"]),
        arms=tuple(state["arms"]),
        labelled=frozenset(card["name"] for card in cards if card.get("task") == "classify"),
    )


async def read_signals(
    server: Server, texts: Sequence[str], *, collection: str | None = None, with_embeddings: bool = False
) -> list[Signals]:
    """The signals of at most 64 questions. Raises: see `read_served`."""
    body = {
        "input": [*texts],
        "model": "auto",
        "collection": collection,
        "signals": True,
        "embeddings": with_embeddings,
    }
    found = (await _route(server, body))["results"]
    return [
        Signals(
            {
                name: None if value is None else round(value, _DIGITS)
                for name, value in each["signals"].items()
                if not name.startswith(_OF_OUTCOMES)
            },
            tuple(round(value, _DIGITS) for value in each["embedding"]) if with_embeddings else None,
        )
        for each in found
    ]


async def _route(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    sent = {name: value for name, value in body.items() if value is not None}
    try:
        return await server.call("POST", "/v1/route", json=sent)
    except ServerError as error:
        if error.status != 404 or error.code == "collection_not_found":
            raise
        raise SwitchyardError(
            "the server has no /v1/route, so signals and keys cannot be read. Start one of this version: "
            "switchyard serve."
        ) from None


def _keys(content: Any) -> Keys:
    try:
        return keys_from_json(content)
    except ValueError as error:
        raise SwitchyardError(
            f"the server's keys cannot be read ({error}). Start one of this version: switchyard serve."
        ) from None
