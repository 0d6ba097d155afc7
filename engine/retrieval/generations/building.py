"""One task with one generation, from its documents to its place: everything but the thread that it runs in."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from engine.errors import StoreUnavailable
from engine.retrieval.foreground import Foreground
from engine.retrieval.generations.beside import Beside
from engine.retrieval.generations.cutting import Cancelled, Cutter
from engine.retrieval.generations.evaluating import Evaluation, Side, decide
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.recipe import Recipe
from engine.retrieval.store.database import PAUSE_S
from engine.retrieval.store.generations import Generation, Generations, end_task, is_under_way, put_in_place
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import Store
from engine.retrieval.store.uncut import add_chunks, count_uncut, read_uncut_among

# Documents or chunks that are taken into memory between two looks at whether somebody waits.
_ROWS_PER_PIECE = 2048
# Documents that may be written between the last catch-up and the switch, and are then cut while writes wait. Tries
# before that: mostly nothing comes in between.
_MAX_LAST, _NUM_CLEAN_TRIES = 16, 3

_log = logging.getLogger(__name__)


class Place(Protocol):
    """Where the collections are served: what a task needs of the retriever."""

    def recipe(self, generation: Generation) -> Recipe:
        """How its chunks are made, with the encoder loaded. Raises: SwitchyardError where that cannot be."""
        ...

    def side(self, collection: str) -> Side:
        """The generation that is searched now."""
        ...

    def new_live(self, generation: Generation, recipe: Recipe) -> LiveCollection:
        """An empty index for a generation."""
        ...

    def evaluate(self, old: Side, new: Side, generation: Generation) -> Evaluation | None:
        """Compare on what is judged."""
        ...

    def prepare(self, generation: Generation, live: LiveCollection) -> None:
        """Called once all of a generation is in memory, before it is put in place."""
        ...

    def replace(self, generation: Generation, recipe: Recipe, live: LiveCollection) -> None:
        """Search `live` from now on, and what was there before no more. Called in the switch's own write turn."""
        ...

    def tidy(self, generation: Generation) -> None:
        """Called once a generation is in place and nobody waits: close what was there before."""
        ...


@dataclass(slots=True)
class _Pass:
    """How far a task is: no document was left to cut at `version`."""

    cutter: Cutter
    beside: Beside
    version: int = 0


class Building:
    """Builds or brings back one generation. Everything durable is in the store: begun anew, it goes on from there."""

    def __init__(
        self,
        store: Store,
        place: Place,
        foreground: Foreground,
        check: Callable[[], None],
    ) -> None:
        """`check` is called between pieces and raises where there is to be no other."""
        self._store = store
        self._rows = Generations(store)
        self._place = place
        self._foreground = foreground
        self._check = check

    def run(self, generation: Generation) -> None:
        """Take the task of a generation to its end. Raises: Cancelled; SwitchyardError for what stands in the way."""
        recipe = self._place.recipe(generation)
        if not generation.encoder:
            described = asdict(recipe.encoder.identity)
            self._rows.name_encoder(generation, recipe.encoder.identity, described)
            generation = replace(generation, encoder=described)
        cutter = Cutter(self._store, generation, recipe, self._foreground, self._check)
        cutter.work()
        with self._store.reading() as connection:
            version = LogReader(connection).version(generation.collection)
        generation = replace(generation, version=version)
        live = self._place.new_live(generation, recipe)
        is_in_place = False
        try:
            task = _Pass(cutter, Beside(generation.state(), live))
            self._catch_up(generation, task)
            report, is_wanted = generation.report, True
            if generation.task != "use":
                report, is_wanted = self._report(generation, recipe, live)
            if not is_wanted:
                self._rows.end(generation, "done", report=report)
                return
            self._place.prepare(generation, live)
            while not is_in_place:
                is_in_place = self._place_it(generation, recipe, task, report)
        except StoreUnavailable as error:
            if error.is_settled:
                raise
            self._settle()
            is_in_place = self._place.side(generation.name).live is live
            if not is_in_place:
                raise
        finally:
            if not is_in_place:
                live.close()
                shutil.rmtree(live.folder, ignore_errors=True)
        self._place.tidy(generation)

    def _settle(self) -> None:
        """Wait until it is known what became of a switch whose answer was lost."""
        while True:
            self._check()
            try:
                self._store.settle()
                return
            except StoreUnavailable:
                time.sleep(PAUSE_S)

    def _catch_up(self, generation: Generation, task: _Pass) -> None:
        """Come to a moment at which every document is cut and all of that is in memory."""
        task.version = task.cutter.work()
        is_whole = False
        while not is_whole:
            self._check()
            self._foreground.step_aside()
            with self._store.reading() as connection:
                if not is_under_way(connection, generation):
                    raise Cancelled
                reader = LogReader(connection)
                is_whole = task.beside.catch_up(reader, reader.version(generation.collection), _ROWS_PER_PIECE)

    def _report(self, generation: Generation, recipe: Recipe, live: LiveCollection) -> tuple[dict[str, Any], bool]:
        found = self._place.evaluate(self._place.side(generation.name), Side(live, recipe.encoder), generation)
        assert generation.task is not None
        is_wanted, why = decide(generation.task, found, generation.name, generation.number)
        evaluation = None if found is None else found.to_json()
        report = {"switch": generation.task, "evaluation": evaluation, "evaluated_at": time.time()}
        return {**report, "is_switched": is_wanted, "why": why}, is_wanted

    def _place_it(self, generation: Generation, recipe: Recipe, task: _Pass, report: dict[str, Any] | None) -> bool:
        for num_tries in range(_NUM_CLEAN_TRIES + 1):
            self._catch_up(generation, task)
            if self._switch(generation, recipe, task, report, _MAX_LAST if num_tries == _NUM_CLEAN_TRIES else 0):
                return True
        return False

    def _switch(
        self, generation: Generation, recipe: Recipe, task: _Pass, report: dict[str, Any] | None, max_last: int
    ) -> bool:
        """Put the generation in place in one write turn; False where more than `max_last` documents were written."""
        with self._store.transaction() as transaction:
            connection = transaction.connection
            if not is_under_way(connection, generation):
                raise Cancelled
            reader = LogReader(connection)
            changed = reader.changed(generation.collection, task.version)
            if count_uncut(connection, generation, changed) > max_last:
                return False
            last = read_uncut_among(connection, generation, changed)
            if last:
                chunks, vectors = task.cutter.cut(last, is_urgent=True)
                add_chunks(connection, generation, chunks, vectors)
            version = reader.version(generation.collection) + 1
            # The log knows nothing of the new version yet: what it tells is that of the one before.
            caught, _ = task.beside.read(reader, version, None)
            put_in_place(connection, generation, version)
            end_task(connection, generation, "done", report=report, version=version)
            live = task.beside.live
            live.commit(
                *(transaction, caught.changes, caught.vectors, version),
                then=lambda: self._place.replace(generation, recipe, live),
            )
        _log.info("collection %s is served by generation %d from now on", generation.name, generation.number)
        return True
