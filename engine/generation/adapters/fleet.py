"""All replicas of a generator as one AdapterHost: a change holds for every one of them, or for none.

The desired set has a version. Replicas follow it: each asks for the next one by reporting what became of the last. A
change is answered when every replica that is alive has reported it; where one refuses, fails or stays silent, the set
is what it was before, and the replicas follow that.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

from engine.durable_files import write_file
from engine.errors import ComponentUnavailable, DataFolderError, InvalidAdapter, UnknownAdapter
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.host import AdapterInfo
from engine.generation.adapters.replication import Desired, Report

POLL_S = 5.0
TIMEOUT_S = 60.0
# So often replicas that stay silent are asked for a sign of life.
_CHECK_S = 0.5
Inspect = Callable[[Path, str], tuple[AdapterInfo, dict[str, bytes]]]


class AdapterFleet:
    """Every method may be called from any thread. Until `open`, changes wait for nobody."""

    def __init__(
        self,
        inspect: Inspect,
        folders: DigestFolders,
        members: Path,
        *,
        is_alive: Callable[[str], bool],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`members` is a file that remembers which replicas follow: after a restart of this process they still serve
        what they did, and a change has to wait for them too.
        """
        self._inspect = inspect
        self._folders = folders
        self._members = members
        self._is_alive = is_alive
        self._timeout_s = timeout_s
        self._is_open = False
        self._changing = threading.Lock()
        self._condition = threading.Condition()  # guards what follows
        self._desired = Desired(1 + secrets.randbits(48), {})
        self._infos: dict[str, AdapterInfo] = {}
        self._reports = {name: Report(name) for name in _read_members(members) if is_alive(name)}

    def open(self) -> None:
        """From now on changes wait for the replicas."""
        self._is_open = True
        self._prune()

    def load_adapter(self, name: str, path: Path, digest: str | None = None) -> AdapterInfo:
        """See AdapterHost. Waits for every replica, and raises what one of them has to say against it."""
        with self._changing:
            info, contents = self._inspect(path, name)
            if digest is not None and info.digest != digest:
                raise InvalidAdapter(name, f"its files have the digest {info.digest[:12]}..., not {digest[:12]}...")
            try:
                info = replace(info, path=self._folders.add(info.digest, contents))
            except OSError as error:
                raise DataFolderError(f"adapter {name!r} cannot be kept ({error.strerror}).") from None
            del contents  # the replicas may take long, and they are large
            self._change({**self._infos, name: info}, name)
        return info

    def unload_adapter(self, name: str) -> AdapterInfo:
        """See AdapterHost. Waits for every replica."""
        with self._changing:
            if name not in self._infos:
                raise UnknownAdapter(name, self._infos)
            info = self._infos[name]
            self._change({other: kept for other, kept in self._infos.items() if other != name}, name)
        return info

    def adapters(self) -> list[AdapterInfo]:
        """See AdapterHost: without those that a replica refuses."""
        refused = self.refused()
        with self._condition:
            return [self._infos[name] for name in sorted(self._infos) if name not in refused]

    def refused(self) -> dict[str, str]:
        """Names in the set that do not fit a replica, which says why. A change that one refuses is undone, so these
        were in the set when this process or that replica started.
        """
        with self._condition:
            current = [each for each in self._reports.values() if each.version == self._desired.version]
            refused = {name: str(why) for each in current for name, why in each.refused.items()}
            return {name: why for name, why in refused.items() if name in self._infos}

    def failed(self) -> dict[str, str]:
        """Names in the set that a replica lacks and tries again to load, and why."""
        with self._condition:
            return {
                name: why
                for report in self._reports.values()
                for name, why in report.failed.items()
                if name in self._infos
            }

    def num_replicas(self, name: str) -> int:
        """How many replicas serve what `name` stands for."""
        with self._condition:
            info = self._infos.get(name)
            served = [report.served.get(name) for report in self._reports.values()]
        return 0 if info is None else served.count(info.digest)

    def forget_dead(self) -> None:
        """Wait for replicas that are gone no more."""
        with self._condition:
            known = list(self._reports)
        dead = [name for name in known if not self._is_alive(name)]
        if dead:
            with self._condition:
                for name in dead:
                    self._reports.pop(name, None)
                self._condition.notify_all()

    def follow(self, report: Report, wait_s: float = POLL_S) -> Desired:
        """See AdapterSource. Blocks for at most `wait_s`."""
        with self._condition:
            is_new = report.follower not in self._reports
            self._reports[report.follower] = report
            self._condition.notify_all()
        if is_new:
            self.forget_dead()
            self._note_members()
        with self._condition:
            self._condition.wait_for(lambda: self._desired.version != report.version, wait_s)
            return self._desired

    # What follows is called while a change is made.

    def _change(self, infos: Mapping[str, AdapterInfo], name: str) -> None:
        before = self._infos
        version = self._publish(infos)
        try:
            if self._is_open:
                self._await(version, name)
        except BaseException:
            self._publish(before)
            raise
        with self._condition:
            self._infos = dict(infos)
        if self._is_open:
            self._prune()

    def _publish(self, infos: Mapping[str, AdapterInfo]) -> int:
        with self._condition:
            digests = {name: info.digest for name, info in infos.items()}
            self._desired = Desired(self._desired.version + 1, digests)
            self._condition.notify_all()
            return self._desired.version

    def _await(self, version: int, name: str) -> None:
        deadline, next_check = monotonic() + self._timeout_s, monotonic() + _CHECK_S
        while True:
            with self._condition:
                waiting = [each for each in self._reports.values() if each.version != version]
                for report in self._reports.values():
                    if report.version == version and name in report.refused:
                        raise report.refused[name]
                    if report.version == version and name in report.failed:
                        raise ComponentUnavailable("generator", f"one replica: {report.failed[name]}")
                if not waiting:
                    return
                left = deadline - monotonic()
                if left <= 0:
                    why = (
                        f"{len(waiting)} of {len(self._reports)} replicas said nothing of adapter {name!r} for "
                        f"{self._timeout_s:g} s, so all is as before"
                    )
                    raise ComponentUnavailable("generator", why)
                self._condition.wait(min(left, _CHECK_S))
            if monotonic() >= next_check:
                self.forget_dead()
                next_check = monotonic() + _CHECK_S

    def _prune(self) -> None:
        with self._condition:
            in_use = {info.digest for info in self._infos.values()}
            in_use.update(digest for report in self._reports.values() for digest in report.served.values())
        with suppress(OSError):  # they only take room
            self._folders.prune(in_use)

    def _note_members(self) -> None:
        with self._condition, suppress(OSError):  # a full disk must not keep a replica from serving
            self._members.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._members, (json.dumps(sorted(self._reports)) + "\n").encode())


def _read_members(path: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []
