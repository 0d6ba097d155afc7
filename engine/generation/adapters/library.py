"""The adapters that are served: names, digests, and weights in memory, read by a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import torch

from engine.errors import ComponentUnavailable, InvalidAdapter, SwitchyardError, UnknownAdapter, UnknownModel
from engine.generation.adapters.files import AdapterWeights
from engine.generation.adapters.host import AdapterInfo
from engine.generation.adapters.store import PackedAdapter

_log = logging.getLogger(__name__)
Reader = Callable[[Path, str], tuple[AdapterInfo, AdapterWeights]]


class AdapterLibrary:
    """Every public method may be called from any thread; none but `load` waits for a file.

    A request holds the digest that its adapter's name stood for when it came. Weights that requests hold stay in
    memory, whatever becomes of the name or the files; of others, the `num_kept` used last.
    """

    def __init__(
        self,
        read: Reader,
        pack: Callable[[AdapterWeights], PackedAdapter],
        *,
        num_kept: int,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called after a file was read, or could not be."""
        self._read = read
        self._pack = pack
        self._num_kept = num_kept
        self._on_change = on_change
        self._lock = threading.Lock()  # guards what follows
        self._served: dict[str, AdapterInfo] = {}
        self._weights: OrderedDict[str, PackedAdapter] = OrderedDict()  # used last at the end
        self._holders: dict[str, int] = {}
        self._loading: set[str] = set()
        self._failed: dict[str, SwitchyardError] = {}  # of digests that requests hold
        self._has_failed = False  # since `take_changes`
        self._retired: list[str] = []
        self.num_reads = 0
        # One thread, and one thread of torch's: a second team would put the engine's own to sleep between regions.
        self._reader = ThreadPoolExecutor(1, "adapters", initializer=torch.set_num_threads, initargs=(1,))

    def load(self, name: str, path: Path, digest: str | None = None) -> AdapterInfo:
        """Read and check the adapter in folder `path`, and serve it as `name`, in place of what that was.

        Raises: InvalidAdapter, also where the files have another digest than asked for, and nothing changes;
        ComponentUnavailable when the engine is closing.
        """
        info, packed = self._submitted(name, path)
        if digest is not None and info.digest != digest:
            raise InvalidAdapter(name, f"its files have the digest {info.digest[:12]}..., not {digest[:12]}...")
        with self._lock:
            previous = self._served.get(name)
            self._served[name] = info
            self._failed.pop(info.digest, None)
            if info.digest in self._retired:
                self._retired.remove(info.digest)
            self._keep(packed)
            if previous is not None:
                self._retire_unused(previous.digest)
        self._on_change()
        return info

    def unload(self, name: str) -> AdapterInfo:
        """Serve `name` no more; requests in progress keep what they hold. Raises: UnknownAdapter."""
        with self._lock:
            if name not in self._served:
                raise UnknownAdapter(name, self._served)
            info = self._served.pop(name)
            self._retire_unused(info.digest)
        self._on_change()
        return info

    def infos(self) -> list[AdapterInfo]:
        """What is served, by name."""
        with self._lock:
            return [self._served[name] for name in sorted(self._served)]

    def acquire(self, name: str) -> AdapterInfo:
        """What `name` stands for now; its weights are read if need be, and kept until `release`.

        Raises: UnknownModel naming those that are served; nothing is read then.
        """
        with self._lock:
            info = self._served.get(name)
            if info is None:
                raise UnknownModel(name, ["auto", *sorted(self._served)])
            self._holders[info.digest] = self._holders.get(info.digest, 0) + 1
            if info.digest in self._weights:
                self._weights.move_to_end(info.digest)
            elif info.digest not in self._loading:
                self._loading.add(info.digest)
                self._failed.pop(info.digest, None)
                self._reader.submit(self._read_again, info)
        return info

    def release(self, digest: str) -> None:
        """A request that held the adapter is over."""
        with self._lock:
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]
                self._failed.pop(digest, None)
                self._retire_unused(digest)
                self._trim()

    def weights(self, digest: str) -> PackedAdapter | None:
        """The weights, None while they are not in memory."""
        return self._weights.get(digest)

    def is_loaded(self, digest: str) -> bool:
        """Whether the weights are in memory."""
        return digest in self._weights

    @property
    def has_changes(self) -> bool:
        """Whether `take_changes` would give anything."""
        return self._has_failed or bool(self._retired)

    def take_changes(self) -> tuple[dict[str, SwitchyardError], list[str]]:
        """Digests whose files could not be read, and those that are gone for good since the last call.

        The former stay as long as requests hold them: one that took hold may only now be on its way into the batch.
        """
        with self._lock:
            self._has_failed = False
            retired, self._retired = self._retired, []
            return dict(self._failed), retired

    def close(self) -> None:
        """Stop reading; calling it again does nothing."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _submitted(self, name: str, path: Path) -> tuple[AdapterInfo, PackedAdapter]:
        try:
            return self._reader.submit(self._read_and_pack, name, path).result()
        except (RuntimeError, CancelledError) as error:
            raise ComponentUnavailable("generator", f"no adapter can be loaded: {error or 'it is closing'}") from None

    def _read_and_pack(self, name: str, path: Path) -> tuple[AdapterInfo, PackedAdapter]:
        self.num_reads += 1
        info, weights = self._read(path, name)
        return info, self._pack(weights)

    def _read_again(self, expected: AdapterInfo) -> None:
        """Bring back weights that had been given up; the files must be those that were checked when it was loaded."""
        try:
            info, packed = self._read_and_pack(expected.name, expected.path)
            if info.digest != expected.digest:
                raise InvalidAdapter(expected.name, "its files changed since; load it again to serve what they are now")
        except SwitchyardError as error:
            self._note_failure(expected, error)
        except Exception as error:
            _log.error("adapter %s could not be read", expected.name, exc_info=error)
            why = f"adapter {expected.name!r} could not be read: {type(error).__name__}"
            self._note_failure(expected, ComponentUnavailable("generator", why))
        else:
            with self._lock:
                self._loading.discard(expected.digest)
                self._keep(packed)
        self._on_change()

    def _note_failure(self, info: AdapterInfo, error: SwitchyardError) -> None:
        with self._lock:
            self._loading.discard(info.digest)
            if info.digest in self._holders:
                self._failed[info.digest] = error
                self._has_failed = True

    # The rest is called under the lock.

    def _keep(self, packed: PackedAdapter) -> None:
        self._weights[packed.digest] = packed
        self._weights.move_to_end(packed.digest)
        self._trim()

    def _trim(self) -> None:
        idle = [digest for digest in self._weights if digest not in self._holders]
        for digest in idle[: max(len(idle) - self._num_kept, 0)]:
            del self._weights[digest]

    def _retire_unused(self, digest: str) -> None:
        """Forget an adapter that no name stands for and no request holds."""
        if digest in self._holders or any(info.digest == digest for info in self._served.values()):
            return
        self._weights.pop(digest, None)
        self._retired.append(digest)
