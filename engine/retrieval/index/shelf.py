"""What one tenant has in a collection: vector rows, the fields that filters see, and how its scores usually look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.background import BackgroundMeter
from engine.retrieval.index.metadata_index import MetadataIndex
from engine.retrieval.index.rows import Rows
from engine.retrieval.store.write import Change


@dataclass(slots=True)
class Shelf:
    """Not thread-safe: the collection holds a lock."""

    rows: Rows
    metadata: MetadataIndex = field(default_factory=MetadataIndex)
    meter: BackgroundMeter = field(default_factory=BackgroundMeter)

    def append(self, keys: NDArray[np.int64], vectors: Vectors, documents: Sequence[int]) -> None:
        """Add chunks: their keys [n], vectors [n, E] and the numbers of their documents, which `metadata` knows."""
        slots = np.array([self.metadata.slot_of(document) for document in documents], np.int32)
        self.rows.append(keys, vectors, slots)

    def put(self, change: Change, vectors: Vectors) -> None:
        """Bring rows and filters in step with a change; `vectors` [n, E] are those of its added chunks."""
        self.rows.remove(change.removed)
        for document in change.removed_documents:
            self.metadata.remove(document)
        for document, fields in change.documents.items():
            self.metadata.put(document, fields)
        keys = np.array([chunk.key for chunk in change.added], np.int64)
        self.append(keys, vectors, [chunk.document for chunk in change.added])
