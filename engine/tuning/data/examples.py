"""`read_examples`: a file to its rows, its kind and task, its labels and its digest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import TrainingDataError
from engine.tuning.data.limits import DataLimits
from engine.tuning.data.parsing import ignored_fields, kinds_of, parse_row
from engine.tuning.data.records import BadRow, FileFormat, Record, Records, read_records
from engine.tuning.data.rows import KIND_FIELDS, KIND_TASKS, Kind, LabelRow, Row, Task
from engine.tuning.data.source import is_compressed

MAX_REPORTED = 20


@dataclass(frozen=True, slots=True)
class Examples:
    """What a file of examples holds, in its order.

    `digest` is the SHA-256 (hex) of kind and rows: the same for a CSV and a JSONL of the same rows, whatever the file
    is called and whichever lines were left out of it. `labels` are sorted, and empty for other tasks than `classify`.
    `bad_rows` are the first ones of `num_bad`; `provenance` is what the file says about its origin.
    """

    source: str
    file_format: FileFormat
    is_compressed: bool
    kind: Kind
    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    digest: str
    bad_rows: tuple[BadRow, ...] = ()
    num_bad: int = 0
    ignored_fields: tuple[str, ...] = ()
    provenance: dict[str, Any] | None = None

    @property
    def task(self) -> Task:
        """What a model trained on these rows does."""
        return KIND_TASKS[self.kind]

    @property
    def description(self) -> str:
        """Format and kind as they were found, for people."""
        compressed = " (gzip)" if self.is_compressed else ""
        return f"{self.file_format}{compressed}, rows of {' and '.join(KIND_FIELDS[self.kind])}"


def read_examples(
    file: Path, *, skip_bad: bool = False, labels: Iterable[str] | None = None, limits: DataLimits | None = None
) -> Examples:
    """Read and check a file of examples: JSONL or CSV, plain or gzip.

    Args:
        skip_bad: use the good rows of a file that has bad ones.
        labels: the only labels allowed, as for an evaluation file; None takes what the file has, at least two.
    Raises: TrainingDataError naming file, line and fix; its `problems` are the first bad rows.
    """
    limits = limits or DataLimits()
    records = read_records(file, limits)
    kind = _kind(file, records)
    allowed = None if labels is None else frozenset(labels)
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    num_bad = 0
    ignored: set[str] = set()
    for item in records.items:
        row: Row | str = item.reason if isinstance(item, BadRow) else parse_row(item, kind, limits)
        if isinstance(row, LabelRow) and allowed is not None and row.label not in allowed:
            row = f"'label' {row.label!r} is none of the {len(allowed)} labels trained on; correct it or leave it out"
        if isinstance(row, str):
            num_bad += 1
            if len(bad_rows) < MAX_REPORTED:
                bad_rows.append(BadRow(item.line, row))
            continue
        assert isinstance(item, Record)
        ignored |= ignored_fields(item, kind)
        rows.append(row)
    if num_bad and (not skip_bad or not rows):
        _refuse_bad_rows(file, bad_rows, num_bad, len(records.items), are_all_bad=not rows)
    return Examples(
        source=str(file),
        file_format=records.file_format,
        is_compressed=is_compressed(file),
        kind=kind,
        rows=tuple(rows),
        labels=_labels(file, rows, limits) if allowed is None else tuple(sorted(allowed)) if kind == "label" else (),
        digest=_digest(kind, rows),
        bad_rows=tuple(bad_rows),
        num_bad=num_bad,
        ignored_fields=tuple(sorted(ignored)),
        provenance=records.provenance,
    )


def _kind(file: Path, records: Records) -> Kind:
    """The kind that most rows have."""
    counts: Counter[Kind] = Counter()
    first: Record | None = None
    for item in records.items:
        if not isinstance(item, Record):
            continue
        first = first or item
        kinds = kinds_of(item)
        if len(kinds) > 1:
            names = " and of ".join(" and ".join(map(repr, KIND_FIELDS[kind])) for kind in kinds)
            raise TrainingDataError(
                f"{file}:{item.line}: has the fields of {names}. Keep one kind of example in a file."
            )
        counts.update(kinds)
    if counts:
        return counts.most_common(1)[0][0]
    if not records.items:
        raise TrainingDataError(f"{file}: holds no examples. Write one in each line.")
    if first is None:
        bad = [item for item in records.items if isinstance(item, BadRow)]
        _refuse_bad_rows(file, bad[:MAX_REPORTED], len(bad), len(bad), are_all_bad=True)
    found = ", ".join(repr(name[:40]) for name in list(first.fields)[:8]) or "no fields"
    raise TrainingDataError(
        f"{file}:{first.line}: has {found}, which are the fields of no kind of example; allowed: "
        f"{' | '.join(', '.join(fields) for fields in KIND_FIELDS.values())}. Rename the fields."
    )


def _refuse_bad_rows(file: Path, bad_rows: list[BadRow], num_bad: int, num_rows: int, *, are_all_bad: bool) -> NoReturn:
    first = bad_rows[0]
    fix = "Correct them." if are_all_bad else "Correct them, or leave them out with --skip-bad."
    count = "1 row is bad" if num_bad == 1 else f"{num_bad} rows are bad"
    raise TrainingDataError(
        f"{file}:{first.line}: {first.reason}. {count} of {num_rows}. {fix}", problems=map(str, bad_rows)
    )


def _labels(file: Path, rows: list[Row], limits: DataLimits) -> tuple[str, ...]:
    """Every label, checked as a set."""
    first: dict[str, int] = {}
    for row in rows:
        if isinstance(row, LabelRow):
            first.setdefault(row.label, row.line)
    if not first:
        return ()
    if len(first) == 1:
        raise TrainingDataError(
            f"{file}: every row is labelled {next(iter(first))!r}. A classifier needs at least two labels: add "
            "examples of the others, or use 'prompt' and 'completion' for free text."
        )
    if len(first) > limits.max_labels:
        raise TrainingDataError(
            f"{file}: has {len(first)} labels, allowed are {limits.max_labels}. Merge labels, or use 'prompt' and "
            "'completion' for free text."
        )
    spelled: dict[str, str] = {}
    for label, line in first.items():
        other = spelled.setdefault(" ".join(label.casefold().split()), label)
        if other != label:
            raise TrainingDataError(
                f"{file}:{line}: label {label!r} differs from {other!r} (line {first[other]}) by case or spaces only. "
                "Spell it one way."
            )
    return tuple(sorted(first))


def _digest(kind: Kind, rows: list[Row]) -> str:
    digest = sha256(kind.encode())
    for row in rows:
        content = row.content() | ({} if row.group is None else {"group": row.group})
        digest.update(b"\n" + json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()
