"""Training on several Ray workers, on one machine or on a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import SwitchyardError, TrainingError
from engine.serving.loopback import use_loopback
from engine.tuning.training.events import Listener
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.result import TrainingResult
from engine.tuning.training.settings import TrainingSettings
from engine.tuning.training.trainer import BaseModel, Metric, train
from engine.tuning.training.workers import Workers


@dataclass(frozen=True, slots=True)
class Run:
    """The arguments of `train`, as they travel to each worker, and the threads of each."""

    base: BaseModel
    training: Sequence[EncodedExample]
    validation: Sequence[EncodedExample]
    settings: TrainingSettings
    folder: Path
    metric: Metric | None
    device: str
    threads: int
    checkpoint_every_s: float
    max_minutes: float | None


class RayTrainer:
    """Trains as `train` does, by `num_workers` processes that Ray starts, on a Ray of its own or the one at `address`.

    Where Ray spans machines, the model's folder and the run's must be on a disk that all of them see.
    """

    def __init__(self, num_workers: int, *, threads: int, address: str | None = None) -> None:
        """`threads` are shared by the workers of one machine: each gets its part, one at least."""
        self._num_workers = num_workers
        self._threads = max(1, threads // num_workers) if address is None else threads
        self._address = address

    def train(
        self,
        base: BaseModel,
        training: Sequence[EncodedExample],
        validation: Sequence[EncodedExample],
        settings: TrainingSettings,
        folder: Path,
        *,
        metric: Metric | None = None,
        device: str = "cpu",
        on_event: Listener = lambda _: None,
        checkpoint_every_s: float = 60.0,
        max_minutes: float | None = None,
    ) -> TrainingResult:
        """See `engine.tuning.training.trainer.train`. `on_event` is called in another thread.

        Raises: as `train`; TrainingError when Ray Train is not installed, or a worker dies.
        """
        run = Run(
            base, training, validation, settings, folder, metric, device, self._threads, checkpoint_every_s, max_minutes
        )
        ray = self._started()
        try:
            return _fit(run, self._num_workers, on_event)
        finally:
            if self._address is None:
                ray.shutdown()

    def _started(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self._address is None:
            use_loopback()
            # Ray's own default puts the token into the home folder, where it would outlive this command.
            if "RAY_AUTH_MODE" not in os.environ:
                os.environ["RAY_AUTH_MODE"] = "token"
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        import ray

        try:
            import ray.train.torch
        except ImportError as error:
            raise TrainingError(
                f"--workers needs Ray Train ({error}); install it: pip install 'switchyard[workers]'."
            ) from None
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ray.init(
            address=self._address or "local",
            include_dashboard=None if self._address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        # Ray installs a handler of SIGTERM that aborts this process.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return ray


def _fit(run: Run, num_workers: int, on_event: Listener) -> TrainingResult:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    is_gpu = run.device.startswith("cuda")
    messages = Queue(actor_options={"num_cpus": 0})
    results: list[TrainingResult] = []
    reader = threading.Thread(target=_read, args=(messages, results, on_event), daemon=True)
    reader.start()
    scratch = run.folder / "ray"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": run, "messages": messages},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if is_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=is_gpu),
        # Nothing is reported to Ray: the run's own checkpoints resume it.
        run_config=RunConfig(storage_path=str(scratch.absolute()), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise _cause(error) from None
    finally:
        messages.put(None)
        reader.join(timeout=10)
        messages.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    return results[0]


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    import ray.train
    import torch

    run: Run = config["run"]
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(run.threads)
    device = run.device
    if device.startswith("cuda"):
        from ray.train.torch import get_device

        device = str(get_device())
    result = train(
        run.base,
        run.training,
        run.validation,
        run.settings,
        run.folder,
        metric=run.metric,
        device=device,
        on_event=config["messages"].put,
        checkpoint_every_s=run.checkpoint_every_s,
        max_minutes=run.max_minutes,
        workers=workers,
    )
    if workers.is_first:
        config["messages"].put(result)


def _read(messages: Any, results: list[TrainingResult], on_event: Listener) -> None:
    """Hand on what the first worker tells, until there is no more."""
    while (message := messages.get()) is not None:
        if isinstance(message, TrainingResult):
            results.append(message)
        else:
            on_event(message)


def _cause(error: Exception) -> SwitchyardError:
    """What went wrong in a worker, without what Ray wraps around it."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    for cause in causes:
        if isinstance(cause, SwitchyardError):
            return cause
    lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
    return TrainingError(f"a worker failed: {lines[-1] if lines else type(causes[0]).__name__}. Start again to go on.")
