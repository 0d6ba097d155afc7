"""What a run of `switchyard tune` is asked for. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.errors import ConfigError
from engine.tuning.outcome import Context
from engine.tuning.training.settings import TrainingSettings

MAX_PASSAGES = 32
MAX_FACTOR = 100


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """None takes what fits the data. Raises: ConfigError.

    `instruction` is the system message; `context` and `num_passages` are of questions, of which `share_without` are
    trained without a golden passage. Rows of --exceptions are repeated `exceptions_factor` times. `curve` are numbers
    of rows to train on besides. `num_judged` answers of each evaluation are generated.
    """

    instruction: str | None = None
    context: Context | None = None
    num_passages: int = 3
    share_without: float = 0.2
    exceptions_factor: int = 3
    epochs: int | None = None
    rank: int | None = None
    learning_rate: float | None = None
    batch_tokens: int | None = None
    evaluations_per_epoch: int | None = None
    max_minutes: float | None = None
    num_judged: int = 100
    curve: tuple[int, ...] = ()
    seed: int = 0
    is_forced: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_passages", 1, MAX_PASSAGES),
            ("share_without", 0, 1),
            ("exceptions_factor", 1, MAX_FACTOR),
            ("num_judged", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name}={value!r} is not allowed; it goes from {least} to {most}.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"max_minutes={self.max_minutes!r} must be a positive number.")
        if any(size < 1 for size in self.curve) or len(set(self.curve)) < len(self.curve):
            raise ConfigError(f"curve={','.join(map(str, self.curve))} must be different numbers of rows, from 1 on.")

    def settings(self, fitting: TrainingSettings) -> TrainingSettings:
        """`fitting` with what was asked for. Raises: ConfigError."""
        given = {
            name: value
            for name in ("epochs", "rank", "learning_rate", "batch_tokens", "evaluations_per_epoch")
            if (value := getattr(self, name)) is not None
        }
        return replace(fitting, **given)

    def identity(self) -> dict[str, Any]:
        """What a stopped run must have been asked for too: everything that changes its result but when to give up."""
        names = [name for name in self.__slots__ if name not in ("max_minutes", "is_forced")]
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}
