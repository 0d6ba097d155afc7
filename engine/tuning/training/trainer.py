"""Train an adapter: steps, evaluations, checkpoints, and the best adapter at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch.nn.utils import clip_grad_norm_

from engine.errors import TrainingDiverged, TrainingError
from engine.tuning.outcome import TrainingRun
from engine.tuning.training.batches import plan_epoch, split_forwards
from engine.tuning.training.checkpoint import delete_checkpoints, load_checkpoint, save_checkpoint
from engine.tuning.training.events import Evaluated, HistoryPoint, Listener, Resumed, Stepped
from engine.tuning.training.examples import EncodedExample, check_fit, examples_digest
from engine.tuning.training.model import AdapterModel, weights_digest
from engine.tuning.training.packing import pack
from engine.tuning.training.result import TrainingResult, exported, peak_gpu_bytes, peak_memory_bytes, write_adapter
from engine.tuning.training.schedule import evaluation_steps, learning_rate_at, num_warm_up_steps
from engine.tuning.training.settings import TrainingSettings
from engine.tuning.training.state import RunState, from_checkpoint, new_optimizer, to_checkpoint
from engine.tuning.training.watch import divergence, is_out_of_patience
from engine.tuning.training.workers import Workers

Metric = Callable[[AdapterModel], float]
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The checkpoint to adapt: its folder, the name that the adapter's config gives, and the digest of its files."""

    path: Path
    name: str
    digest: str


def train(
    base: BaseModel,
    training: Sequence[EncodedExample],
    validation: Sequence[EncodedExample],
    settings: TrainingSettings,
    folder: Path,
    *,
    metric: Metric | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    on_event: Listener = lambda _: None,
    checkpoint_every_s: float = 60.0,
    max_minutes: float | None = None,
    workers: Workers = Workers(),  # noqa: B008 (frozen)
) -> TrainingResult:
    """Train a LoRA adapter and leave that of the best evaluation in `folder`/adapter, in float16.

    The best is that of the largest `metric`, or of the least validation loss where there is none; loss breaks ties.
    State goes to `folder`/checkpoints after each evaluation and every `checkpoint_every_s` seconds; a call that finds
    a stopped run there goes on with it, to the same adapter bit for bit on the same machine with as many threads.
    The checkpoints are deleted at the end. `dtype` is of the base weights, by default `training_dtype(device)`. After
    `max_minutes` of all sessions the adapter is evaluated once more and training ends.
    Each of `workers` calls this with the same arguments, `folder` on a disk that all of them see; `metric` and
    `on_event` are called in the first alone.

    Raises: TrainingError when examples are missing or do not fit the model, or the disk refuses; CheckpointMismatch
    when `folder` holds a run of other data or settings; TrainingDiverged when the loss runs away, after the best
    adapter so far was written; ModelSourceError when the base model cannot be loaded.
    """
    if not training or not validation:
        raise TrainingError(
            f"{len(training)} examples to train on and {len(validation)} to validate with: both are needed, since the "
            "adapter that does best on the second is kept. Add examples, or split some off."
        )
    model = AdapterModel(base.path, settings, device=device, dtype=dtype)
    limits = model.peft.config
    for examples in (training, validation):
        check_fit(examples, limits.max_position_embeddings, limits.vocab_size)
    identity: dict[str, Any] = {
        "training examples": examples_digest(training),
        "validation examples": examples_digest(validation),
        "base model": base.digest,
        "base weights": str(model.dtype).removeprefix("torch."),
        "device": device.partition(":")[0],
        "workers": workers.size,
        **asdict(settings),
    }
    run = _Run(
        model,
        training,
        validation,
        settings,
        folder,
        identity,
        metric,
        on_event,
        checkpoint_every_s,
        max_minutes,
        workers,
    )
    diverged: str | None = None
    stopped: Literal["finished", "patience", "time"] = "finished"
    try:
        stopped = run.go()
    except _Diverged as error:
        diverged = str(error)
    state = run.state
    adapter = folder / ADAPTER
    weights = exported(state.best_weights)
    if workers.is_first:
        if state.best is not None:
            write_adapter(adapter, weights, model.config_json(base.name))
        delete_checkpoints(folder / CHECKPOINTS)
    if diverged is not None or state.best is None:
        kept = (
            f"the adapter of step {state.best.step} is kept in {adapter}" if state.best else "there was no evaluation"
        )
        raise TrainingDiverged(
            f"training diverged at step {state.step + 1} of {run.num_steps}: {diverged}; {kept}. "
            f"Lower the learning rate ({settings.learning_rate:g}), or look for wrong labels."
        )
    done = TrainingRun(
        settings=asdict(settings),
        history=tuple(state.history),
        best=state.best,
        num_steps=state.step,
        stopped=stopped,
        minutes=(state.train_s + state.evaluate_s) / 60,
        tokens_per_s=state.tokens_per_s(),
        peak_memory_bytes=peak_memory_bytes(),
        peak_gpu_bytes=peak_gpu_bytes(device),
        device=identity["device"],
    )
    return TrainingResult(adapter, weights_digest(weights), done)


class _Diverged(Exception):
    """Why the run cannot go on."""


class _Run:
    def __init__(
        self,
        model: AdapterModel,
        training: Sequence[EncodedExample],
        validation: Sequence[EncodedExample],
        settings: TrainingSettings,
        folder: Path,
        identity: dict[str, Any],
        metric: Metric | None,
        on_event: Listener,
        checkpoint_every_s: float,
        max_minutes: float | None,
        workers: Workers,
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._settings, self._identity, self._metric, self._workers = settings, identity, metric, workers
        self._on_event: Listener = on_event if workers.is_first else lambda _: None
        self._checkpoints, self._checkpoint_every_s = folder / CHECKPOINTS, checkpoint_every_s
        self._max_s = math.inf if max_minutes is None else max_minutes * 60
        self._lengths = [len(example.tokens) for example in training]
        self._plans = [
            plan_epoch(self._lengths, batch_tokens=settings.batch_tokens, seed=settings.seed, epoch=epoch)
            for epoch in range(settings.epochs)
        ]
        self.num_steps = sum(map(len, self._plans))
        self._due = evaluation_steps([len(plan) for plan in self._plans], settings.evaluations_per_epoch)
        self._optimizer = new_optimizer(model, settings)
        found = load_checkpoint(self._checkpoints, identity)
        self.state = RunState() if found is None else from_checkpoint(found, model, self._optimizer)
        if found is not None:
            self._on_event(Resumed(found.step, self.num_steps))

    def go(self) -> Literal["finished", "patience", "time"]:
        """Take the steps that are left, and say why there are no more."""
        state = self.state
        saved_at = time.monotonic()
        while state.step < self.num_steps:
            if is_out_of_patience(state.history, self._settings.patience):
                return "patience"
            if state.step and self._is_late():
                if state.step > (state.history[-1].step if state.history else 0):
                    self._evaluate()
                return "time"
            self._step()
            is_due = state.step in self._due
            if is_due:
                self._evaluate()
            if self._workers.is_first and (is_due or time.monotonic() - saved_at >= self._checkpoint_every_s):
                save_checkpoint(self._checkpoints, to_checkpoint(state, self._model, self._optimizer, self._identity))
                saved_at = time.monotonic()
        return "finished"

    def _is_late(self) -> bool:
        """Whether the time is over: by the first worker's clock, or they would part ways."""
        if math.isinf(self._max_s):
            return False
        is_mine = self._workers.is_first and self.state.train_s + self.state.evaluate_s >= self._max_s
        return self._workers.add([float(is_mine)]) != [0.0]

    def _step(self) -> None:
        state, settings = self.state, self._settings
        started = time.monotonic()
        batch = self._plans[state.epoch][state.position]
        loss, norm = self._gradient([self._training[index] for index in batch])
        wrong = divergence([*state.losses, loss], norm, num_warm_up_steps(settings, self.num_steps))
        if wrong is not None:
            raise _Diverged(wrong)
        rate = learning_rate_at(state.step, self.num_steps, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.position += 1
        if state.position == len(self._plans[state.epoch]):
            state.epoch, state.position = state.epoch + 1, 0
        state.losses.append(loss)
        state.tokens += sum(self._lengths[index] for index in batch)
        state.train_s += time.monotonic() - started
        self._on_event(
            Stepped(state.step, self.num_steps, self._epochs(), loss, rate, state.tokens_per_s(), self._eta_s())
        )

    def _gradient(self, examples: Sequence[EncodedExample]) -> tuple[float, float]:
        """Accumulate the gradient of one step: its loss in nats per completion token, and the norm before clipping."""
        # Divided by the tokens of the whole step, so that cutting it into forward passes changes nothing.
        num_targets = sum(example.num_completion for example in examples)
        lengths = [len(example.tokens) for example in examples]
        total = 0.0
        for forward in split_forwards(self._workers.share(lengths), lengths, self._settings.forward_tokens):
            batch = pack([examples[index] for index in forward], self._model.device)
            loss = self._model.token_losses(batch).sum() / num_targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        (total,) = self._workers.add([total])
        self._workers.add_gradients(self._model.parameters.values())
        norm = clip_grad_norm_(self._model.parameters.values(), self._settings.max_gradient_norm)
        return total, norm.item()

    def _evaluate(self) -> None:
        state = self.state
        started = time.monotonic()
        valid_loss = self._validation_loss()
        value = None
        if self._metric is not None:
            # The others add nothing to what the first measured.
            (value,) = self._workers.add([float(self._metric(self._model)) if self._workers.is_first else 0.0])
        if value is not None and not math.isfinite(value):
            raise TrainingError(f"the task metric is {value} after step {state.step}; it must be a number.")
        since = state.history[-1].step if state.history else 0
        point = HistoryPoint(
            step=state.step,
            epoch=self._epochs(),
            train_loss=fmean(state.losses[since:]),
            valid_loss=valid_loss,
            metric=value,
        )
        if not math.isfinite(point.valid_loss):
            raise _Diverged(f"the validation loss is {point.valid_loss}")
        is_best = point.beats(state.best)
        if is_best:
            state.best, state.best_weights = point, self._model.weights()
        state.history.append(point)
        state.evaluate_s += time.monotonic() - started
        self._on_event(Evaluated(point, is_best))

    def _validation_loss(self) -> float:
        """Nats per completion token."""
        mine = self._workers.share([len(example.tokens) for example in self._validation])
        losses = [0.0] * len(self._validation)
        losses[mine.start : mine.stop] = self._model.example_losses(
            self._validation[mine.start : mine.stop], forward_tokens=self._settings.forward_tokens
        )
        return math.fsum(self._workers.add(losses)) / sum(example.num_completion for example in self._validation)

    def _epochs(self) -> float:
        """Epochs done, as a number with a fraction."""
        state = self.state
        done = state.position / len(self._plans[state.epoch]) if state.position else 0.0
        return state.epoch + done

    def _eta_s(self) -> float:
        state = self.state
        ahead = sum(1 for step in self._due if step > state.step)
        evaluation = state.evaluate_s / len(state.history) if state.history else 0.0
        return state.train_s / state.step * (self.num_steps - state.step) + evaluation * ahead
