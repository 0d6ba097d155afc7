"""The plan of a batch of writes: which items are stored, which are deleted, and what becomes of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.errors import InvalidRequest, RequestError, UnsupportedMediaType
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.parsing.formats import MEDIA_TYPES, ParsedDocument, parse_document
from engine.retrieval.preparing import PreparedDocument, check_document_id, content_hash, cut_document
from engine.retrieval.store.write import Change
from engine.values import DocumentWrite, WriteResult


class WritePlan:
    """Filled step by step: `prepare`, `count_embedded`, `keep_only`, then `results`."""

    def __init__(self, items: Sequence[DocumentWrite]) -> None:
        self._items = items
        self._last = {item.id: position for position, item in enumerate(items)}
        self._errors: dict[int, RequestError] = {}
        self._unchanged: dict[str, tuple[str, int]] = {}
        self._embedded: dict[str, int] = {}
        self._left_out: set[str] = set()
        self.puts: list[PreparedDocument] = []
        self.deletes: list[str] = []
        for position, item in enumerate(items):
            try:
                check_document_id(item.id)
            except InvalidRequest as error:
                self._errors[position] = error
            else:
                if self._last[item.id] != position:
                    self._errors[position] = InvalidRequest(
                        f"document id {item.id!r} comes again later in this batch (item {self._last[item.id] + 1}); "
                        "only the last one is applied. Send each id once.",
                        param="id",
                    )

    def ids(self) -> list[str]:
        """The ids that this batch writes."""
        return [item.id for item in self.sound_items()]

    def sound_items(self) -> list[DocumentWrite]:
        """The items with which nothing is wrong as far as is known."""
        return [item for position, item in enumerate(self._items) if position not in self._errors]

    def check_cheaply(self) -> None:
        """Find what is wrong with items without parsing them."""
        for position, item in enumerate(self._items):
            if position in self._errors or item.delete:
                continue
            try:
                content_hash(item)
                if item.content_type.partition(";")[0].strip().lower() not in MEDIA_TYPES:
                    raise UnsupportedMediaType(item.content_type[:80], MEDIA_TYPES)
            except RequestError as error:
                self._errors[position] = error

    def prepare(self, chunker: Chunker, stored: Mapping[str, tuple[str, int]], *, threads: int = 1) -> None:
        """Parse and chunk what differs from `stored` (id to content hash and number of chunks); `threads` chunk."""
        parsed: list[tuple[DocumentWrite, ParsedDocument]] = []
        for position, item in enumerate(self._items):
            if position in self._errors:
                continue
            if item.delete:
                self.deletes.append(item.id)
                continue
            try:
                new_hash = content_hash(item)
                old_hash, num_chunks = stored.get(item.id, ("", 0))
                if new_hash == old_hash:
                    self._unchanged[item.id] = new_hash, num_chunks
                else:
                    parsed.append((item, parse_document(item.body, item.content_type, title=item.title)))
            except RequestError as error:
                self._errors[position] = error
        with ThreadPoolExecutor(threads, "chunking") as pool:
            self.puts = list(pool.map(lambda one: cut_document(one[0], one[1], chunker), parsed))

    def texts(self) -> dict[str, str]:
        """Hash to text of everything that the new chunks need embedded."""
        return {text_hash: text for put in self.puts for text_hash, text in put.texts.items()}

    def count_embedded(self, text_hashes: Iterable[str]) -> None:
        """Note which texts are embedded anew; a text that documents share counts for the first of them."""
        remaining = set(text_hashes)
        for put in self.puts:
            mine = remaining & put.texts.keys()
            self._embedded[put.document.id] = len(mine)
            remaining -= mine

    def keep_only(self, ids: Collection[str]) -> None:
        """Leave out every other item: it gets no result, and nothing of it is stored."""
        self._left_out = {item.id for item in self._items} - set(ids)
        self.puts = [put for put in self.puts if put.document.id in ids]
        self.deletes = [document_id for document_id in self.deletes if document_id in ids]

    def unchanged_ids(self) -> list[str]:
        """Ids of what `prepare` found stored already."""
        return [document_id for document_id in self._unchanged if document_id not in self._left_out]

    def is_current(self, stored: Mapping[str, tuple[str, int]]) -> bool:
        """Whether what was unchanged when it was prepared still is."""
        return all(stored.get(document_id) == self._unchanged[document_id] for document_id in self.unchanged_ids())

    def results(self, change: Change) -> list[WriteResult]:
        """A result per item, in order, after the write."""
        num_chunks = {put.document.id: len(put.document.chunks) for put in self.puts}
        num_chunks |= {document_id: number for document_id, (_, number) in self._unchanged.items()}
        results = []
        for position, item in enumerate(self._items):
            error = self._errors.get(position)
            if item.id in self._left_out:
                continue
            if error is not None:
                results.append(WriteResult(item.id, "failed", change.version, error=error))
                continue
            results.append(
                WriteResult(
                    item.id,
                    status=change.statuses.get(item.id, "unchanged"),
                    version=change.version,
                    chunks=num_chunks.get(item.id, 0),
                    embedded=self._embedded.get(item.id, 0),
                )
            )
        return results

    def accepted(self, job: str | None, version: int) -> list[WriteResult]:
        """A result per item, in order, once the sound ones wait in the inbox."""
        return [
            WriteResult(item.id, "failed", version, error=error)
            if (error := self._errors.get(position)) is not None
            else WriteResult(item.id, "accepted", version, job=job)
            for position, item in enumerate(self._items)
        ]
