"""Batches of writes into the store and the indexes: at once, or later from the inbox, by one path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.errors import StoreUnavailable
from engine.retrieval.encoding.protocol import EncoderLike, Vectors
from engine.retrieval.foreground import Foreground
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.index.rows import check_vectors
from engine.retrieval.recipe import Recipe
from engine.retrieval.store.database import Patience
from engine.retrieval.store.inbox import WaitingBatch, WaitingWrite, finish, still_waiting, supersede
from engine.retrieval.store.store import Store, read_content_hashes
from engine.retrieval.store.write import Change, Transaction
from engine.retrieval.writing import WritePlan
from engine.values import DocumentWrite, WriteResult

# Texts that background work embeds between two looks at whether somebody waits.
_TEXTS_PER_PIECE = 64


class Writer:
    """Parses and embeds outside of the store's turn, then applies a batch in one transaction. Thread-safe."""

    def __init__(
        self,
        store: Store,
        recipes: Mapping[str, Recipe],
        new_recipe: Recipe,
        live: dict[str, LiveCollection],
        new_live: Callable[[str, float, int, Recipe], LiveCollection],
        *,
        foreground: Foreground,
        threads: int,
        check_open: Callable[[], None],
    ) -> None:
        """
        Args:
            recipes: of the collections' generations by name; of those that are not in it, `new_recipe`.
            live: the collections by name; a first document adds one, made by `new_live` of its name, the time when it
                was created, its version and recipe.
            foreground: writes that somebody waits for are counted there.
            threads: that cut documents into chunks.
            check_open: raises once the retriever is closed.
        """
        self._store = store
        self._recipes = recipes
        self._new_recipe = new_recipe
        self._live = live
        self._new_live = new_live
        self._threads = threads
        self._check_open = check_open
        self._foreground = foreground

    def write(self, collection: str, items: Sequence[DocumentWrite], tenant: str) -> list[WriteResult]:
        """Apply a batch as one version. What waits in the inbox for the same documents is older and taken out.

        Where the database goes away, the write waits for it and begins again.
        Raises: StoreUnavailable where it stays away; the error says whether it is known that nothing was stored.
        """
        patience = Patience()
        with self._foreground.work():
            while True:
                try:
                    return self._write(collection, items, tenant)
                except StoreUnavailable as error:
                    patience.wait_after(error)

    def apply(self, batch: WaitingBatch, *, is_last_try: bool = False) -> list[WriteResult]:
        """Apply writes of the inbox and take them out, in one transaction; foreground writes go first.

        Returns: a result per write that still waited; one that is transient stays in the inbox unless this is the last
            try.
        """
        items = [write.item for write in batch.writes]
        return self._write(batch.collection, items, batch.tenant, batch.writes, is_last_try=is_last_try)

    def _write(
        self,
        collection: str,
        items: Sequence[DocumentWrite],
        tenant: str,
        waiting: Sequence[WaitingWrite] | None = None,
        *,
        is_last_try: bool = False,
    ) -> list[WriteResult]:
        is_urgent = waiting is None
        while True:
            self._make_way(is_urgent)
            plan = WritePlan(items)
            recipe = self._recipes.get(collection, self._new_recipe)
            stored = self._store.content_hashes(collection, tenant, plan.ids())
            plan.prepare(recipe.chunker, stored, threads=self._threads)
            vectors = self._vectors_of(plan, recipe.encoder, is_urgent)
            with self._store.transaction(is_urgent=is_urgent) as transaction:
                self._check_open()
                if transaction.generation(collection) not in (None, recipe.generation):
                    continue  # another generation is in place since, whose chunks are made otherwise
                if waiting is not None:
                    # A later write has replaced the others, or their job was cancelled.
                    plan.keep_only(still_waiting(transaction.connection, waiting))
                stored = read_content_hashes(transaction.connection, collection, tenant, plan.unchanged_ids())
                if not plan.is_current(stored):
                    # An older write came in between: skipping this one would let that one win.
                    continue
                change = transaction.apply(
                    collection,
                    tenant,
                    puts=[prepared.document for prepared in plan.puts],
                    deletes=plan.deletes,
                    vectors=vectors,
                    encoder=recipe.encoder.identity,
                    chunking=recipe.chunking,
                    model=recipe.model,
                )
                results = plan.results(change)
                if waiting is None:
                    sound = [result.id for result in results if result.error is None]
                    supersede(transaction.connection, collection, tenant, sound, version=change.version)
                else:
                    handled = {result.id: result for result in results if is_last_try or not result.is_transient}
                    finish(transaction.connection, waiting, handled)
                self._commit(transaction, collection, tenant, change, vectors, recipe)
            return results

    def _commit(
        self,
        transaction: Transaction,
        collection: str,
        tenant: str,
        change: Change,
        vectors: Mapping[str, Vectors],
        recipe: Recipe,
    ) -> None:
        live = self._live.get(collection)
        if change.version == (0 if live is None else live.version):
            transaction.commit()
            return
        if live is None:
            live = self._new_live(collection, change.created_at, 0, recipe)
            live.create()

        def shown() -> None:
            self._live[collection] = live

        live.commit(transaction, {tenant: change}, vectors, change.version, then=shown)

    def _make_way(self, is_urgent: bool) -> None:
        if not is_urgent:
            self._foreground.step_aside()
            self._check_open()

    def _vectors_of(self, plan: WritePlan, encoder: EncoderLike, is_urgent: bool) -> dict[str, Vectors]:
        """The vector of each text that the plan needs; texts seen before are not embedded again."""
        texts = plan.texts()
        vectors = self._store.embeddings(encoder.identity.digest, texts)
        missing = [text_hash for text_hash in texts if text_hash not in vectors]
        plan.count_embedded(missing)
        step = max(1, len(missing)) if is_urgent else _TEXTS_PER_PIECE
        for first in range(0, len(missing), step):
            piece = missing[first : first + step]
            self._make_way(is_urgent)
            embedded = encoder.encode([texts[text_hash] for text_hash in piece])
            check_vectors(embedded, encoder.dim)
            vectors.update(zip(piece, embedded, strict=True))
        return vectors
