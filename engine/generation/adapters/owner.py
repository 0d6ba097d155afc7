"""The owner of the adapters where several replicas serve them: one process, beside the data folder. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from engine.generation.adapters.catalogue import AdapterCatalogue
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.fleet import POLL_S, TIMEOUT_S, AdapterFleet
from engine.generation.adapters.inspection import inspect_adapter
from engine.generation.adapters.replication import Desired, Report
from engine.generation.adapters.service import AdapterService
from engine.generation.adapters.status import AdapterStatus

# In the adapters folder; no adapter can have these names.
FILES_FOLDER = ".files"
MEMBERS_FILE = ".replicas.json"


class AdapterOwner:
    """What AdapterService does for one engine, for a fleet of them, and an AdapterSource for its replicas."""

    def __init__(
        self,
        registry: AdapterCatalogue,
        *,
        base_name: str,
        model_digest: str,
        max_rank: int,
        is_alive: Callable[[str], bool],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`is_alive` says whether a replica of that name still runs. Raises: as AdapterService."""
        self._folders = DigestFolders(registry.folder / FILES_FOLDER)
        self._fleet = AdapterFleet(
            partial(inspect_adapter, model_digest=model_digest, max_rank=max_rank),
            self._folders,
            registry.folder / MEMBERS_FILE,
            is_alive=is_alive,
            timeout_s=timeout_s,
        )
        self._service = AdapterService(self._fleet, registry, base_name=base_name)
        self._fleet.open()

    def go_on_refreshing(self, every_s: float) -> None:
        """See AdapterService."""
        self._service.go_on_refreshing(every_s)

    def close(self) -> None:
        """Refresh no more; calling it again does nothing."""
        self._service.close()

    def statuses(self) -> list[AdapterStatus]:
        """See AdapterService; with how many replicas have each loaded."""
        self._fleet.forget_dead()
        errors = self._fleet.failed() | self._fleet.refused()
        return [
            replace(self._counted(status), error=status.error or errors.get(status.name))
            for status in self._service.statuses()
        ]

    def load(self, name: str, path: str | None = None, version: str | None = None) -> AdapterStatus:
        """See AdapterService. Returns when every replica that is alive serves it."""
        return self._counted(self._service.load(name, path, version))

    def unload(self, name: str, *, delete_files: bool = False) -> None:
        """See AdapterService. Returns when no replica serves it any more."""
        self._service.unload(name, delete_files=delete_files)

    def follow(self, report: Report, wait_s: float = POLL_S) -> Desired:
        """See AdapterSource. Blocks for at most `wait_s`, where nothing changes."""
        return self._fleet.follow(report, wait_s)

    def sizes(self, digest: str) -> dict[str, int]:
        """See AdapterSource."""
        return self._folders.sizes(digest)

    def piece(self, digest: str, file: str, offset: int) -> bytes:
        """See AdapterSource."""
        return self._folders.piece(digest, file, offset)

    def _counted(self, status: AdapterStatus) -> AdapterStatus:
        return replace(status, replicas=self._fleet.num_replicas(status.name))
