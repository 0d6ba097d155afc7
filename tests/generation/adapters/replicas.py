"""An owner and its replicas in one process: real files, real threads, and no model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.errors import ComponentUnavailable, InvalidAdapter, UnknownAdapter
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.follower import AdapterFollower
from engine.generation.adapters.host import AdapterInfo
from engine.generation.adapters.inspection import inspect_adapter
from engine.generation.adapters.owner import FILES_FOLDER, AdapterOwner
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.replication import Desired, Report

KEY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def write_adapter(folder: Path, value: float, *, rank: int = 2, width: int = 32) -> Path:
    """Save an adapter of one layer, filled with a value. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4}))
    a, b = torch.full((rank, width), value), torch.full((width, rank), value)
    save_file({KEY.format(0, "A"): a, KEY.format(0, "B"): b}, folder / "adapter_model.safetensors")
    return folder


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Host:
    """An AdapterHost that knows its adapters by what can be said without a model; it refuses ranks above `max_rank`."""

    def __init__(self, max_rank: int = 64) -> None:
        self.max_rank = max_rank
        self.served: dict[str, AdapterInfo] = {}
        self.history: list[tuple[str, str | None]] = []  # names and digests in the order they came

    def load_adapter(self, name: str, path: Path, digest: str | None = None) -> AdapterInfo:
        info, _ = inspect_adapter(path, name, model_digest="", max_rank=self.max_rank)
        if digest is not None and info.digest != digest:
            raise InvalidAdapter(name, f"its files have the digest {info.digest}, not {digest}")
        self.served = {**self.served, name: info}
        self.history.append((name, info.digest))
        return info

    def unload_adapter(self, name: str) -> AdapterInfo:
        if name not in self.served:
            raise UnknownAdapter(name, self.served)
        info = self.served[name]
        self.served = {other: kept for other, kept in self.served.items() if other != name}
        self.history.append((name, None))
        return info

    def adapters(self) -> list[AdapterInfo]:
        served = self.served
        return [served[name] for name in sorted(served)]

    def digests(self) -> dict[str, str]:
        return {name: info.digest for name, info in self.served.items()}


class Line:
    """An AdapterSource: the way to the owner, which can be cut, held up, or damage what it carries."""

    def __init__(self, owner: AdapterOwner) -> None:
        self.owner = owner
        self.is_cut = False
        self.is_open = threading.Event()
        self.is_open.set()
        self.damage: Callable[[bytes], bytes] = lambda piece: piece
        self.pieces: list[int] = []
        self.announced: dict[str, int] = {}  # sizes that are told in place of the true ones

    def follow(self, report: Report) -> Desired:
        self._pass()
        desired = self.owner.follow(report, 0.05)
        self._pass()
        return desired

    def sizes(self, digest: str) -> dict[str, int]:
        self._pass()
        return self.announced or self.owner.sizes(digest)

    def piece(self, digest: str, file: str, offset: int) -> bytes:
        self._pass()
        piece = self.damage(self.owner.piece(digest, file, offset))
        self.pieces.append(len(piece))
        return piece

    def _pass(self) -> None:
        assert self.is_open.wait(20)
        if self.is_cut:
            raise ComponentUnavailable("generator", "the line is cut")


class Replica:
    """A host and its follower. Files are fetched into a folder of its own, unless it may look into the owner's."""

    def __init__(self, name: str, owner: AdapterOwner, folder: Path, *, max_rank: int = 64, sees_owner: bool = False):
        self.name = name
        self.host = Host(max_rank)
        self.line = Line(owner)
        self.folder = folder / name
        shared = DigestFolders(folder / "adapters" / FILES_FOLDER) if sees_owner else None
        self.follower = AdapterFollower(
            self.host, self.line, DigestFolders(self.folder), name=name, shared=shared, retry_s=0.02
        )

    def fetched(self) -> list[str]:
        """Digests in its own folder."""
        return sorted(each.name for each in self.folder.iterdir()) if self.folder.is_dir() else []


class Cluster:
    """One owner over `folder`/adapters and the replicas that were started, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "adapters"
        self.dead: set[str] = set()
        self.replicas: dict[str, Replica] = {}
        self._started: list[Replica] = []
        self.timeout_s = 20.0
        self.owner = self._owner()

    def _owner(self) -> AdapterOwner:
        return AdapterOwner(
            AdapterRegistry(self.home),
            base_name="tiny",
            model_digest="",
            max_rank=64,
            is_alive=lambda name: name not in self.dead,
            timeout_s=self.timeout_s,
        )

    def restart_owner(self, timeout_s: float | None = None) -> None:
        """As a new process finds the folder; the replicas reach it from now on."""
        self.timeout_s = self.timeout_s if timeout_s is None else timeout_s
        self.owner = self._owner()
        for replica in self.replicas.values():
            replica.line.owner = self.owner

    def prepare(self, name: str, *, max_rank: int = 64, sees_owner: bool = False) -> Replica:
        """A replica that has not started."""
        replica = Replica(name, self.owner, self.folder, max_rank=max_rank, sees_owner=sees_owner)
        self.replicas[name] = replica
        self._started.append(replica)
        return replica

    def start(self, name: str, *, max_rank: int = 64, sees_owner: bool = False) -> Replica:
        """One that serves what it is to serve."""
        replica = self.prepare(name, max_rank=max_rank, sees_owner=sees_owner)
        replica.follower.start(20)
        return replica

    def kill(self, name: str) -> None:
        """As a crash does: nobody is told."""
        self.dead.add(name)
        replica = self.replicas.pop(name)
        replica.line.is_cut = True
        replica.follower.close()

    def close(self) -> None:
        for replica in self._started:
            replica.line.is_open.set()
            replica.follower.close()
        for replica in self._started:
            replica.follower.join(20)

    def served(self) -> list[dict[str, str]]:
        """What each replica serves."""
        return [replica.host.digests() for replica in self.replicas.values()]
