"""Holds the router of a server: reads the artefact when its folder changes, and asks what is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.config import EngineConfig
from engine.errors import InvalidAdapter, InvalidRouter, SwitchyardError
from engine.evaluation.shared_router import SharedRouter
from engine.generation.adapters.inputs import TrainingInputs
from engine.generation.adapters.status import ServedAdapter
from engine.retrieval.store.address import chosen_store
from engine.retrieval.store.shared_files import SharedFiles
from engine.routing.artefact import ARRAYS_FILE, JSON_FILE, Artefact, read_artefact
from engine.routing.live import LiveRouter, Surroundings
from engine.routing.needs import Needs
from engine.routing.signals.neighbours import TrainingNeighbours
from engine.values import IndexInfo, RouteRequest, Routing

CHECK_S = 2.0
# For what is served, with the training inputs of new adapters: megabytes.
_ANSWER_S = 15.0
# A folder that is swapped for another is not there for a moment; one that is missing so often is gone.
_GONE_AFTER = 2

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What answers now; `model` is the digest of the generator's weights."""

    model: str
    index: IndexInfo
    adapters: tuple[ServedAdapter, ...]


class RouterSource(Protocol):
    """Where a host learns what is served. Every call raises errors of `engine.errors` only."""

    async def served(self) -> Served: ...

    async def training_inputs(self, digest: str) -> TrainingInputs | None:
        """What the adapter of that digest was trained on; None where its files do not say."""
        ...


class RouterHost:
    """One LiveRouter, replaced by another as things change. Requests never wait for a check but the first.

    Used from one event loop. Where the artefact cannot be read or nothing is heard of what is served, the router goes
    on as it was and says so.
    """

    def __init__(self, config: EngineConfig, source: RouterSource, *, check_s: float = CHECK_S) -> None:
        """Look for the artefact every `check_s` seconds: in `router.artefact`; else in the database of the store, where
        that is PostgreSQL and has one; else in the data folder's `router`.
        """
        self._settings = config.router
        self._max_passages = config.generator.max_passages
        self._collection = config.retriever.default_collection
        self._folder = config.router.artefact or config.data / "router"
        self._shared = _shared_router(config)
        self._source = source
        self._check_s = check_s
        self._artefact: Artefact | None = None
        self._stamp: _Stamp | None = None
        self._num_missing = 0
        self._refused: str | None = None
        self._away: str | None = None
        self._silent: str | None = None
        self._served: Served | None = None
        self._wants_inputs = False
        self._odd_inputs: dict[str, str] = {}
        self._neighbours: dict[str, TrainingNeighbours | None] = {}  # by digest
        self._live = self._made()
        self._checking = asyncio.Lock()
        self._first: asyncio.Task[None] | None = None
        self._rest: asyncio.Task[None] | None = None

    async def needs(self, collection: str) -> Needs:
        """See LiveRouter."""
        await self.start()
        return self._live.needs(collection)

    async def decide(self, requests: Sequence[RouteRequest], wants_signals: bool = False) -> Routing:
        """See LiveRouter."""
        await self.start()
        if wants_signals and not self._wants_inputs:
            self._wants_inputs = True
            await self.check()
        live = self._live
        if len(requests) == 1:
            return live.decide(requests, wants_signals=wants_signals)
        # Many take long enough to keep other requests waiting.
        return await asyncio.to_thread(live.decide, requests, wants_signals=wants_signals)

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows: the router's name, whether it was learned, and warnings. It is always ready."""
        await self.start()
        needs = self._live.needs(self._collection)
        artefact = self._live.artefact
        warnings = [
            self._live.warning(self._collection),
            self._refused,
            self._away,
            self._silent,
            *self._odd_inputs.values(),
        ]
        return {
            "ready": True,
            "name": needs.router if artefact is None else artefact.name,
            "is_learned": artefact is not None and artefact.learned is not None,
            "arms": list(needs.arms),
            "warnings": [warning for warning in warnings if warning is not None],
        }

    async def check(self) -> None:
        """Look at the artefact and at what is served now, and decide by that from then on."""
        async with self._checking:
            artefact, served = self._artefact, self._served
            await self._read()
            if self._artefact is not None or self._wants_inputs:
                await self._ask()
            if self._artefact is not artefact or self._served is not served:
                self._live = self._made()

    def close(self) -> None:
        """Check no more."""
        for task in (self._first, self._rest):
            if task is not None:
                task.cancel()

    async def start(self) -> None:
        """Return after the first check, which finds something or not within seconds; its loop is that of all others.

        Whoever asks before does this too, so call it before there are requests.
        """
        if self._first is None:
            self._first = asyncio.create_task(self._check_safely())
            self._rest = asyncio.create_task(self._go_on_checking())
        if not self._first.done():
            await asyncio.shield(self._first)

    async def _go_on_checking(self) -> None:
        while True:
            await asyncio.sleep(self._check_s)
            await self._check_safely()

    async def _check_safely(self) -> None:
        try:
            await self.check()
        except Exception as error:
            _log.error("the router could not be checked", exc_info=error)

    async def _read(self) -> None:
        try:
            folder = await asyncio.to_thread(self._look)
            self._away = None
        except SwitchyardError as error:
            self._away = f"whether there is another router is not known: {error}"
            return
        stamp = await asyncio.to_thread(_stamp, folder)
        if stamp is None:
            self._num_missing += 1
            if self._artefact is None or self._num_missing >= _GONE_AFTER:
                self._artefact = self._stamp = None
                is_named = self._settings.artefact is not None
                self._refused = "the folder that router.artefact names holds no router" if is_named else None
            return
        self._num_missing = 0
        if stamp == self._stamp:
            return
        try:
            self._artefact = await asyncio.to_thread(read_artefact, folder)
            self._refused = None
            _log.info("%s decides from now on: %s", self._artefact.name, self._artefact.headline)
        except InvalidRouter as error:
            _log.warning("%s", error)
            # Shown to whoever asks: without the path.
            why = str(error).removeprefix(f"{folder}: ")
            goes_on = f" Until then {self._artefact.name} goes on." if self._artefact is not None else ""
            self._refused = f"the router's folder {why}{goes_on}"
        self._stamp = stamp

    def _look(self) -> Path:
        """Where the artefact lies, if there is one."""
        shared = None if self._shared is None else self._shared.fetch()
        return shared or self._folder

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                served = await self._source.served()
                known = {each.digest: self._neighbours.get(each.digest) for each in served.adapters}
                odd = {digest: why for digest, why in self._odd_inputs.items() if digest in known}
                for adapter in served.adapters:
                    if adapter.digest not in self._neighbours:
                        known[adapter.digest], why = await self._near(adapter, served.index.encoder)
                        odd |= {} if why is None else {adapter.digest: why}
        except (SwitchyardError, TimeoutError) as error:
            self._silent = f"what is served is not known anew: {error or 'no answer in time'}"
            return
        self._silent, self._odd_inputs = None, odd
        if (served, known.keys()) != (self._served, self._neighbours.keys()):
            self._served, self._neighbours = served, known

    async def _near(self, adapter: ServedAdapter, encoder: str) -> tuple[TrainingNeighbours | None, str | None]:
        """What an adapter was trained on, or why that cannot be used; neither where its files do not say."""
        try:
            inputs = await self._source.training_inputs(adapter.digest)
        except InvalidAdapter as error:
            return None, f"training inputs: {error}"
        if inputs is None:
            return None, None
        if inputs.encoder_digest != encoder:
            return None, (
                f"adapter {adapter.name!r} carries training inputs embedded by {inputs.encoder}, not by "
                "retriever.model; how near a question is to them is not known"
            )
        return await asyncio.to_thread(TrainingNeighbours, inputs.embeddings), None

    def _made(self) -> LiveRouter:
        around, served = None, self._served
        if served is not None:
            near = {each.name: self._neighbours.get(each.digest) for each in served.adapters}
            around = Surroundings(
                model=served.model,
                index=served.index,
                adapters={each.name: each.digest for each in served.adapters},
                labelled=[each.name for each in served.adapters if each.task == "classify"],
                neighbours={name: found for name, found in near.items() if found is not None},
            )
        return LiveRouter(
            min_z=self._settings.min_z,
            max_passages=self._max_passages,
            arms=self._settings.arms,
            artefact=self._artefact,
            surroundings=around,
        )


def _shared_router(config: EngineConfig) -> SharedRouter | None:
    store = chosen_store(config.store)
    if store is None or config.router.artefact is not None:
        return None
    return SharedRouter(SharedFiles(store), config.data)


def _stamp(folder: Path) -> _Stamp | None:
    """What changes when one of the files is replaced; None where there is none of them."""
    found = []
    for name in (JSON_FILE, ARRAYS_FILE):
        try:
            one = (folder / name).stat()
        except OSError:
            continue
        found.append((one.st_ino, one.st_mtime_ns, one.st_size))
    return tuple(found) or None
