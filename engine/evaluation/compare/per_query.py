"""per_query.csv: a row for each question, and what every arm made of it."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

from engine.durable_files import write_file
from engine.errors import SwitchyardError
from engine.evaluation.compare.measuring import Sheet, is_hit

ANSWERS_TABLE = "per_query.csv"
_FIELDS = ("quality", "answer", "refused", "hit", "latency_ms", "error")
# A spreadsheet would take a text that begins so for a formula, and run it.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def write_answers(sheet: Sheet, folder: Path) -> Path:
    """Write the table over an older one. Raises: SwitchyardError when the folder cannot be written."""
    written = StringIO()
    table = csv.writer(written)
    names = [each.name for each in sheet.contenders]
    table.writerow(
        [
            "id",
            "source",
            "group",
            "metric",
            "question",
            "right",
            *(f"{arm} {field}" for arm in names for field in _FIELDS),
        ]
    )
    for place, question in enumerate(sheet.questions):
        right = question.label if question.label is not None else " | ".join(question.answers)
        row: list[object] = [
            *map(_text, (question.id, question.source, question.group or "")),
            question.metric,
            _text(question.question),
            _text(right),
        ]
        for column, contender in enumerate(sheet.contenders):
            answer = sheet.answer(contender, question)
            graded = sheet.grades.get((contender.name, question.id))
            found = is_hit(question, answer) if answer.passages else None
            row += [
                f"{sheet.quality[place, column]:.4f}",
                _text(answer.text),
                "" if graded is None else int(graded.refused),
                "" if found is None else int(found),
                "" if answer.latency_ms is None else f"{answer.latency_ms:.1f}",
                _text(answer.error or ""),
            ]
        table.writerow(row)
    path = folder / ANSWERS_TABLE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, written.getvalue().encode(errors="backslashreplace"))
    except OSError as error:
        raise SwitchyardError(f"{path}: cannot be written ({error.strerror}). Free disk space.") from None
    return path


def _text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULAS) else text
