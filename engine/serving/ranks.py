"""The processes of a replica's engine under `generator.tensor_parallel`: actors beside it in its placement group."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from engine.config import GeneratorSettings
from engine.errors import ComponentUnavailable, RankLost, SwitchyardError
from engine.generation.engine import Engine
from engine.generation.parallel.follower import follow
from engine.generation.parallel.group import RankGroup
from engine.models import ModelFiles

# To start a process and import torch on a busy machine.
_START_S = 120.0
# For the error of a rank to arrive, once it is known that the rank is gone.
_CAUSE_S = 5.0


class Rank:
    """Any rank but the first. It ends with the first one, and with the replica that started it."""

    def is_ready(self) -> bool:
        """Answers once this process has imported everything."""
        return True

    def follow(self, folder: str, rank: int, model: str, settings: GeneratorSettings, device: str) -> None:
        """Do what the first rank says, until it stops or is gone."""
        follow(Path(folder), rank, Path(model), settings, device=device)


class RankProcesses:
    """All ranks but the first, which is this process: a replica of several bundles."""

    def __init__(self, settings: GeneratorSettings, device: str) -> None:
        self._settings = settings
        self._device = device
        self._actors: list[Any] = []
        self._ends: list[Future[None]] = []
        self._folder: Path | None = None

    def start(self, model: ModelFiles) -> Engine:
        """Start them, and the engine that is the first rank.

        Raises: as Engine, with the error of the rank that failed first where it was another one.
        """
        # On this machine's disk, which all bundles share, and readable by this user alone.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="switchyard-ranks-"))
        try:
            self._start_actors(folder, model)
            ranks = RankGroup(folder, 0, self._settings.tensor_parallel, device=self._device)
            try:
                return Engine(model.path, self._settings, device=self._device, model_digest=model.digest, ranks=ranks)
            except BaseException:
                ranks.close()
                raise
        except SwitchyardError as error:
            cause = self._cause() if isinstance(error, RankLost) else None
            self.stop()
            raise cause or error from None
        except BaseException:
            self.stop()
            raise
        finally:
            if self._device == "cpu":  # gloo has met; NCCL goes on looking there
                shutil.rmtree(folder, ignore_errors=True)

    def check(self) -> None:
        """Raises: ComponentUnavailable when one has ended."""
        if any(end.done() for end in self._ends):
            cause = self._cause()
            why = f"a process of generator.tensor_parallel ended{f': {cause}' if cause else ''}"
            raise ComponentUnavailable("generator", why)

    def stop(self) -> None:
        """End them, whatever they do."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._ends = [], []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start_actors(self, folder: Path, model: ModelFiles) -> None:
        settings = self._settings
        group = get_current_placement_group()
        actor_class = ray.remote(Rank)
        for rank in range(1, settings.tensor_parallel):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            actor = actor_class.options(
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus if self._device.startswith("cuda") else 0,
                scheduling_strategy=place,
            ).remote()
            self._actors.append(actor)
        ready = [actor.is_ready.remote().future() for actor in self._actors]
        done, late = wait(ready, timeout=_START_S)
        for each in done:
            if (error := each.exception()) is not None:
                raise RankLost(f"a process of generator.tensor_parallel did not start ({error})")
        if late:
            raise RankLost(f"{len(late)} processes of generator.tensor_parallel did not start within {_START_S:.0f} s")
        self._ends = [
            actor.follow.remote(str(folder), rank, str(model.path), settings, self._device).future()
            for rank, actor in enumerate(self._actors, 1)
        ]

    def _cause(self) -> SwitchyardError | None:
        """The error of a rank that did not end because of another one."""
        done, _ = wait(self._ends, timeout=_CAUSE_S, return_when=FIRST_COMPLETED)
        errors = [getattr(end.exception(), "cause", None) for end in done]
        own = [error for error in errors if isinstance(error, SwitchyardError) and not isinstance(error, RankLost)]
        return own[0] if own else None
