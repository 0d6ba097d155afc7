"""Where the adapters of a data folder are kept: in the folder itself, or in the database of the store."""

from __future__ import annotations

from pathlib import Path

from engine.generation.adapters.catalogue import AdapterCatalogue
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.stored_registry import StoredRegistry

ADAPTERS = "adapters"


def open_adapters(data: Path, store: str | None, allowed: tuple[Path, ...] = ()) -> AdapterCatalogue:
    """The adapters of the data folder `data`.

    Args:
        store: URL of the store's database, as `chosen_store` gives it; None: the folder alone, which is the truth then.
            With a database that one is, and the folder a cache of it.
        allowed: folders elsewhere that adapters may be loaded from.
    Raises: ConfigError for a URL that names no PostgreSQL database.
    """
    folder = AdapterRegistry(data / ADAPTERS, allowed)
    if store is None:
        return folder
    from engine.retrieval.store.shared_files import SharedFiles  # commands without a database need none of it

    return StoredRegistry(SharedFiles(store), folder)
