"""The collections of the retriever that writes, as the building of generations sees and changes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, MutableMapping
from pathlib import Path

from engine.retrieval.encoding.encoders import Encoders
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.generations.evaluating import Evaluation, Side, evaluate
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.judging import Judging
from engine.retrieval.recipe import Recipe, new_recipe
from engine.retrieval.store.generations import Generation
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import CollectionState, Store

NewLive = Callable[[CollectionState, EncoderLike, Path], LiveCollection]


class OwnCollections:
    """Implements `building.Place`."""

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        judging: Judging,
        *,
        live: MutableMapping[str, LiveCollection],
        recipes: MutableMapping[str, Recipe],
        new_live: NewLive,
        indexes: Path,
        alpha: float | None,
    ) -> None:
        """
        Args:
            live, recipes: the retriever's own, by the names of collections; writers and searches read them.
            indexes: folder of the lexical indexes.
            alpha: of the default fusion.
        """
        self._store = store
        self._encoders = encoders
        self._judging = judging
        self._live = live
        self._recipes = recipes
        self._new_live = new_live
        self._indexes = indexes
        self._alpha = alpha
        self._retired: list[LiveCollection] = []

    def open(self, state: CollectionState) -> None:
        """Load a collection of the store, with the encoder that made its generation. Raises: ModelSourceError."""
        encoder = self._encoders.of(state.name, state.encoder, state.model)
        recipe = new_recipe(state.generation, encoder, state.chunking, state.model)
        live = self._new_live(state, encoder, self.folder(state))
        with self._store.reading() as connection:
            live.load(state.id, LogReader(connection))
        self._put(state.name, recipe, live)

    def folder(self, state: CollectionState) -> Path:
        """Where the lexical index of this generation lies."""
        # An earlier collection of this name may have left an index at the very version of this one.
        return self._indexes / f"{state.name}-{round(state.created_at * 1e6):x}-{state.generation}"

    def recipe(self, generation: Generation) -> Recipe:
        """See Place."""
        if generation.encoder:
            encoder = self._encoders.of(generation.name, generation.encoder, generation.model)
        else:
            encoder = self._encoders.named(generation.model or self._encoders.model)
        return new_recipe(generation.number, encoder, generation.chunking, generation.model)

    def side(self, collection: str) -> Side:
        """See Place."""
        live = self._live[collection]
        encoder = self._encoders.held(live.encoder)
        assert encoder is not None
        return Side(live, encoder)

    def new_live(self, generation: Generation, recipe: Recipe) -> LiveCollection:
        """See Place."""
        state = generation.state()
        return self._new_live(state, recipe.encoder, self.folder(state))

    def evaluate(self, old: Side, new: Side, generation: Generation, check: Callable[[], None]) -> Evaluation | None:
        """See Place."""
        tenants = self._judging.judged_tenants(generation.name)
        grades = [(tenant, self._judging.grades(generation.name, tenant)) for tenant in tenants]
        return evaluate(old, new, generation.name, grades, self._alpha, check)

    def prepare(self, generation: Generation, live: LiveCollection) -> None:
        """See Place."""
        self._judging.prepare(generation.name, live)
        self._store.passages.hold(generation.collection, generation.number)

    def replace(self, generation: Generation, recipe: Recipe, live: LiveCollection) -> None:
        """See Place."""
        old = self._live[generation.name]
        self._put(generation.name, recipe, live)
        # No write can drop the chunks of the old generation while it is searched: this is the switch's write turn.
        old.retire()
        self._retired.append(old)

    def tidy(self, generation: Generation) -> None:
        """See Place."""
        while self._retired:
            old = self._retired.pop()
            old.close()
            shutil.rmtree(old.folder, ignore_errors=True)
        self._judging.follow(generation.name)

    def _put(self, name: str, recipe: Recipe, live: LiveCollection) -> None:
        self._recipes[name] = recipe
        self._live[name] = live
