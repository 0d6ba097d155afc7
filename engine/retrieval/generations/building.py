"""One task with one generation, from its documents to its place: everything but the thread that it runs in."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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
from engine.retrieval.store.uncut import add_chunks, read_uncut_among, uncut_numbers

# Documents or chunks that are taken into memory between two looks at whether somebody waits.
_ROWS_PER_PIECE = 2048
# So many tries to switch at a moment at which every document is cut: mostly nothing comes in between. Where writes come
# all the time, more and more documents are cut while they wait.
_NUM_CLEAN_TRIES, _FEW = 3, 8

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

    def evaluate(self, old: Side, new: Side, generation: Generation, check: Callable[[], None]) -> Evaluation | None:
        """Compare on what is judged; `check` as of Building."""
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
    """How far a task is: at `version`, the documents `left` were to be cut and no other."""

    cutter: Cutter
    beside: Beside
    version: int = 0
    left: list[int] = field(default_factory=list)


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
            self._place_it(generation, recipe, task, report)
            is_in_place = True
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
        """Come to a moment at which next to every document is cut, and all that is cut is in memory."""
        task.version, task.left = task.cutter.work()
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
        old, new = self._place.side(generation.name), Side(live, recipe.encoder)
        found = self._place.evaluate(old, new, generation, self._check)
        assert generation.task is not None
        is_wanted, why = decide(generation.task, found, generation.name, generation.number)
        evaluation = None if found is None else found.to_json()
        report = {"switch": generation.task, "evaluation": evaluation, "evaluated_at": time.time()}
        return {**report, "is_switched": is_wanted, "why": why}, is_wanted

    def _place_it(self, generation: Generation, recipe: Recipe, task: _Pass, report: dict[str, Any] | None) -> None:
        max_last = 0
        for num_tries in itertools.count(1):
            self._catch_up(generation, task)
            max_last = max(max_last, 2 * len(task.left))
            if self._switch(generation, recipe, task, report, max_last):
                return
            if num_tries >= _NUM_CLEAN_TRIES:
                max_last = max(_FEW, 2 * max_last)

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
            last = uncut_numbers(connection, generation, {*changed, *task.left})
            if len(last) > max_last:
                return False
            if last:
                documents = read_uncut_among(connection, generation, last)
                chunks, vectors = task.cutter.cut(documents, is_urgent=True)
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
