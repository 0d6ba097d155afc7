"""Lines to records, as JSONL or CSV. A line that is wrong becomes a problem; the lines after it are still read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from engine.errors import TrainingDataError
from engine.tuning.data.limits import DataLimits
from engine.tuning.data.rows import KIND_FIELDS
from engine.tuning.data.source import encoding_fault, read_lines

FileFormat = Literal["JSONL", "CSV"]

_DELIMITERS = ",;\t|"
_ENDINGS: dict[str, FileFormat] = {".jsonl": "JSONL", ".ndjson": "JSONL", ".csv": "CSV", ".tsv": "CSV"}
# Cells of these columns are JSON.
_JSON_COLUMNS = ("messages", "answers")


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of the example that begins in `line`."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be used, and why; the reason says how to mend it."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Records:
    """What a file holds, in its order. `provenance` is the object of a first line {"_provenance": ...}."""

    file_format: FileFormat
    items: tuple[Record | BadRow, ...]
    provenance: dict[str, Any] | None


def read_records(file: Path, limits: DataLimits) -> Records:
    """Read every record. The name's ending decides the format, else whether the first character is a brace.

    Raises: TrainingDataError for what concerns the whole file: unreadable, a JSON array, no usable header, too large.
    """
    lines = _kept(read_lines(file, limits))
    if not lines:
        raise TrainingDataError(f"{file}: is empty. Write one example in each line, as JSON or CSV with a header.")
    number, first = next((line for line in lines if line[1].strip()), lines[0])
    file_format = _format(file, first)
    if file_format == "CSV":
        items, provenance = _read_csv(file, lines), None
    else:
        if first.lstrip().startswith("["):
            raise TrainingDataError(
                f"{file}:{number}: begins a JSON array. Write one object in each line: jq -c '.[]' FILE > FILE.jsonl"
            )
        parsed = (_read_object(number, text) for number, text in lines if text.strip())
        items, provenance = _without_provenance(parsed)
    kept: list[Record | BadRow] = []
    for item in items:
        if len(kept) == limits.max_rows:
            raise TrainingDataError(
                f"{file}:{item.line}: the file has more than {limits.max_rows} rows. Train on a sample of it."
            )
        kept.append(item)
    return Records(file_format, tuple(kept), provenance)


def _kept(lines: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """All lines up to the last one that is not blank."""
    kept = list(lines)
    while kept and not kept[-1][1].strip():
        kept.pop()
    return kept


def _format(file: Path, first: str) -> FileFormat:
    for suffix in reversed(file.suffixes):
        if suffix.lower() in _ENDINGS:
            return _ENDINGS[suffix.lower()]
        if suffix.lower() != ".gz":
            break
    return "JSONL" if first.lstrip()[:1] in ("{", "[") else "CSV"


def _without_provenance(items: Iterable[Record | BadRow]) -> tuple[Iterator[Record | BadRow], dict[str, Any] | None]:
    remaining = iter(items)
    first = next(remaining, None)
    if isinstance(first, Record) and isinstance(first.fields.get("_provenance"), dict):
        return remaining, first.fields["_provenance"]
    return (item for part in ((first,) if first else (), remaining) for item in part), None


def _read_object(line: int, text: str) -> Record | BadRow:
    if fault := encoding_fault(text):
        return BadRow(line, fault)
    try:
        fields = _parse_json(text)
    except ValueError as error:
        return BadRow(line, f"{error}; write one object in each line")
    if not isinstance(fields, dict):
        return BadRow(line, f"is a {type(fields).__name__}, not an object; write one object in each line")
    return Record(line, fields)


def _parse_json(text: str) -> Any:
    """Raises: ValueError with what is wrong."""
    try:
        return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg} at character {error.pos + 1})") from None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names {twice[:80]!r} twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is not JSON")


def _read_csv(file: Path, lines: list[tuple[int, str]]) -> Iterator[Record | BadRow]:
    place = next((place for place, (_, text) in enumerate(lines) if text.strip()), 0)
    delimiter, names = _header(file, *lines[place])
    rest = lines[place + 1 :]
    reader = csv.reader((text + "\n" for _, text in rest), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(
                rest[begin][0],
                f"cannot be read as CSV ({error}); close each quoted cell, double the quotes inside it, and use JSONL "
                f"for cells of more than {csv.field_size_limit()} characters",
            )
            continue
        if any(cell.strip() for cell in cells):
            yield _read_row(rest[begin][0], names, cells)


def _header(file: Path, line: int, text: str) -> tuple[str, list[str]]:
    """The delimiter under which the first row names the fields of an example, and the names."""
    found: list[str] = []
    for delimiter in _DELIMITERS:
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
        if any(set(fields) <= set(names) for fields in KIND_FIELDS.values()):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise TrainingDataError(
                    f"{file}:{line}: two columns are named {twice[:80]!r}. Give each column a name of its own."
                )
            return delimiter, names
        found = max(found, names, key=len)
    shown = ", ".join(repr(name[:40]) for name in found[:8])
    raise TrainingDataError(
        f"{file}:{line}: the first row names {shown}, which are the columns of no kind of example; allowed: "
        f"{' | '.join(', '.join(fields) for fields in KIND_FIELDS.values())}. Rename the columns, or add a header."
    )


def _read_row(line: int, names: list[str], cells: list[str]) -> Record | BadRow:
    if len(cells) != len(names):
        return BadRow(
            line,
            f"has {len(cells)} cells, the header names {len(names)} columns; give each row one cell for each column "
            "and put quotes around a cell that holds the delimiter",
        )
    fields: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if fault := encoding_fault(cell):
            return BadRow(line, f"{name!r} {fault}")
        if name == "unanswerable":
            fields[name] = {"true": True, "1": True, "false": False, "0": False, "": False}.get(cell.lower(), cell)
        elif name == "answers" and not cell.lstrip().startswith("["):
            fields[name] = [cell] if cell.strip() else []
        elif name in _JSON_COLUMNS:
            try:
                fields[name] = _parse_json(cell)
            except ValueError as error:
                return BadRow(line, f"{name!r} {error}; write a JSON list in the cell")
        elif cell or name not in ("group", "context", "document"):
            fields[name] = cell
    return Record(line, fields)
