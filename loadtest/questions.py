"""Questions that a load test asks, from a JSONL file with one `{"question": ...}` object a line."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import ConfigError

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "examples" / "flyio_questions.jsonl"


def read_questions(path: Path) -> list[str]:
    """The `question` of every line, in order.

    Raises: ConfigError when the file cannot be read, a line has no question, or there is none at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a JSONL file with --questions.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text. Name a JSONL file with --questions.") from None
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ConfigError(f'{path}: holds no questions. Each line is an object like {{"question": "..."}}.')
    return questions


def _question(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        raise ConfigError(f'{where}: is not JSON. Each line is an object like {{"question": "..."}}.') from None
    question = row.get("question") if isinstance(row, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f'{where}: has no text under "question".')
    return question


def ask_in_turn(questions: Sequence[str], seed: int) -> Iterator[str]:
    """Endless questions in one shuffled order, so each is asked about equally often and a seed repeats a run."""
    shuffled = list(questions)
    random.Random(seed).shuffle(shuffled)
    return itertools.cycle(shuffled)


def ask_combined(questions: Sequence[str], number: int, seed: int) -> Iterator[str]:
    """Endless questions that are `number` of them in one, drawn anew each time, so that few are alike.

    Raises: ConfigError where there are not so many.
    """
    if number > len(questions):
        raise ConfigError(f"--combine {number}: there are only {len(questions)} questions. Name a longer --questions.")
    generator = random.Random(f"combined {seed}")
    return (" ".join(generator.sample(questions, number)) for _ in itertools.count())
