"""One replica's part: it serves what the desired set says, and fetches the files that it lacks by their digest."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from time import monotonic

from engine.errors import ComponentUnavailable, InvalidAdapter, SwitchyardError
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.host import AdapterHost
from engine.generation.adapters.replication import AdapterSource, Desired, Report

RETRY_S = 1.0
# A replica that cannot serve the whole set for so long is replaced.
UNHEALTHY_AFTER_S = 60.0

_log = logging.getLogger(__name__)


class AdapterFollower:
    """A thread that keeps one engine in step with the owner. Requests never wait for it.

    Where the owner does not answer, what is loaded stays served.
    """

    def __init__(
        self,
        host: AdapterHost,
        source: AdapterSource,
        local: DigestFolders,
        *,
        name: str,
        shared: DigestFolders | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        """`local` takes what is fetched. `shared` are the owner's own folders, which are read where they can be seen.

        `name` is this replica's, and no other one's ever.
        """
        self._host = host
        self._source = source
        self._local = local
        self._shared = shared
        self._retry_s = retry_s
        self._report = Report(name)  # replaced by the thread only
        self._why: str | None = "the owner of the adapters gave no answer"
        self._failing_since: float | None = None
        self._is_whole = threading.Event()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapters-follower", daemon=True)

    def start(self, timeout_s: float) -> None:
        """Begin to follow; returns when the whole set is served, but for what does not fit this generator.

        Raises: ComponentUnavailable naming what is missing where that takes longer.
        """
        self._thread.start()
        if not self._is_whole.wait(timeout_s):
            self.close()
            why = "; ".join(self._report.failed.values()) or self._why or "reading them takes too long"
            raise ComponentUnavailable("generator", f"its adapters are not loaded after {timeout_s:g} s: {why}")

    def check(self, name: str | None) -> None:
        """Raise ComponentUnavailable where adapter `name` is to be served and could not be loaded here."""
        report = self._report
        if name is not None and name in report.failed and name not in report.served:
            raise ComponentUnavailable("generator", report.failed[name])

    def check_health(self) -> None:
        """Raise ComponentUnavailable where adapters could not be loaded for long, for reasons of this replica's own."""
        since = self._failing_since
        if since is not None and monotonic() - since > UNHEALTHY_AFTER_S:
            raise ComponentUnavailable("generator", "; ".join(self._report.failed.values()))

    def close(self) -> None:
        """Stop following, without waiting for it; calling it again does nothing."""
        self._is_closed.set()

    def status(self) -> Report:
        """What became of the last set that was followed."""
        return self._report

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended after `close`."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            report = self._report
            try:
                desired = self._source.follow(report)
                self._why = None
                if not self._is_closed.is_set() and (desired.version != report.version or report.failed):
                    self._apply(desired)
            except Exception as error:
                self._why = str(error)
                if not isinstance(error, SwitchyardError):
                    _log.error("following the adapters failed", exc_info=error)
                self._is_closed.wait(self._retry_s)

    def _apply(self, desired: Desired) -> None:
        served = self._served()
        for name in served.keys() - desired.digests.keys():
            self._host.unload_adapter(name)
        last = self._report
        # What does not fit is not read again until something changes.
        refused = dict(last.refused) if last.version == desired.version else {}
        failed: dict[str, str] = {}
        for name, digest in desired.digests.items():
            if served.get(name) == digest or name in refused:
                continue
            try:
                self._load(name, digest)
            except InvalidAdapter as error:
                refused[name] = error
                _log.warning("%s", error)
            except Exception as error:
                failed[name] = f"adapter {name!r}: {error}"
                _log.warning("adapter %s could not be loaded", name, exc_info=error)
        self._report = Report(last.follower, desired.version, self._served(), refused, failed)
        if failed:
            self._failing_since = self._failing_since or monotonic()
            return
        self._failing_since = None
        self._is_whole.set()
        with suppress(OSError):  # they only take room
            self._local.prune({*desired.digests.values(), *self._report.served.values()})

    def _load(self, name: str, digest: str) -> None:
        for folders in filter(None, (self._shared, self._local)):
            folder = folders.find(digest)
            if folder is None:
                continue
            try:
                self._host.load_adapter(name, folder, digest)
                return
            except InvalidAdapter:
                if folders.is_intact(digest):
                    raise
                # The copy is at fault, not the adapter: what is fetched takes its place.
        self._host.load_adapter(name, self._local.fetch(digest, self._source), digest)

    def _served(self) -> dict[str, str]:
        return {info.name: info.digest for info in self._host.adapters()}
