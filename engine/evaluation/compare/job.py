"""What one comparison is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.evaluation.compare.few_shot import DEFAULT_NUM, FewShot
from engine.evaluation.compare.updating import Update
from engine.evaluation.questions import Question


@dataclass(frozen=True, slots=True)
class CompareJob:
    """What to compare. `arms` None takes all; `data` is looked into for reports of tunings."""

    origin: str
    created: str
    questions: tuple[Question, ...]
    folder: Path
    data: Path
    arms: tuple[str, ...] | None = None
    collection: str = "default"
    max_tokens: int = 64
    concurrency: int = 4
    sample: int | None = None
    seed: int = 0
    few_shot: FewShot | None = None
    few_shot_source: str | None = None
    num_few_shot: int = DEFAULT_NUM
    updates: tuple[Update, ...] = ()
    restart: bool = False
