"""CSV and JSON lines: each row becomes a section of `column: value` lines, so that a chunk holds whole rows and every
row can be found by its columns' names. Runs in a parser's process."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.sections import Section
from engine.retrieval.parsing.text import ParsedDocument, decode, printable

_DELIMITERS = ",;\t|"
_NUM_SNIFFED_ROWS = 20
_SNIFFED_CHARS = 65_536
_MAX_NAME_CHARS = 1000
_MAX_DEPTH = 32
_BLANK_LINES = re.compile(r"[^\S\n]*\n\s*")


def parse_csv(body: bytes, limits: ParsingLimits, *, delimiter: str | None = None) -> ParsedDocument:
    """Rows under the names of the first row; values are quoted as RFC 4180 says. Cells without text are left out.

    Args:
        delimiter: None takes the one of `,` `;` tab `|` that cuts the first rows into equally many cells.
    Raises: UnparsableDocument for a row that does not fit the first one or is badly quoted, with its line; for a name
        that two columns bear; for a table over a limit.
    """
    text = decode(body)
    rows = _csv_rows(text, delimiter or _sniff_delimiter(text), limits)
    table = _Table(limits)
    names: list[str] = []
    for line, cells in rows:
        if not names:
            names = _column_names(line, cells, limits)
        elif len(cells) != len(names):
            _refuse(
                f"line {line} has {len(cells)} cells, the first row names {len(names)} columns. "
                "Give each row one cell for each column, and put quotes around a cell that holds the delimiter."
            )
        else:
            table.add(line, zip(names, cells, strict=True))
    return table.finish()


def parse_jsonl(body: bytes, limits: ParsingLimits) -> ParsedDocument:
    """A JSON object a line. Nested names are joined by dots (`address.city`), and null is left out.

    Raises: UnparsableDocument for a line that is no JSON object, is nested deeper than 32 levels or is over a limit.
    """
    table = _Table(limits)
    for line, text in enumerate(decode(body).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            # Numbers stay as they are written.
            row = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
        except RecursionError:
            _refuse_depth(line)
        except ValueError as error:
            # The decoder counts its own lines, which are always 1.
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            _refuse(f"line {line} is no JSON ({why}). Write one JSON object in each line.")
        if not isinstance(row, dict):
            _refuse(f"line {line} is JSON, but no object. Write one JSON object in each line.")
        table.add(line, _flat(row, line))
    return table.finish()


class _Table:
    """Gathers the text and the sections of rows."""

    def __init__(self, limits: ParsingLimits) -> None:
        self._limits = limits
        self._pieces: list[str] = []
        self._sections: list[Section] = []
        self._length = 0

    def add(self, line: int, cells: Iterable[tuple[str, str]]) -> None:
        """Add the row that begins in this line."""
        limits, name = self._limits, f"Line {line}"
        lines = [name]
        for number, (column, value) in enumerate(cells, start=1):
            if number > limits.max_columns:
                _refuse(f"line {line} has more than {limits.max_columns} values. Split it into several rows.")
            if max(len(column), len(value)) > limits.max_field_chars:
                _refuse(
                    f"line {line}: the value of {column[:80]!r} has {len(value)} characters, allowed are "
                    f"{limits.max_field_chars}. Send long texts as documents of their own."
                )
            # A blank line would read as the end of the row.
            value = printable(value).strip()
            value = _BLANK_LINES.sub("\n", value) if "\n" in value else value
            if value:
                lines.append(f"{' '.join(printable(column).split())}: {value}")
        if len(lines) == 1:
            return
        if len(self._sections) == limits.max_rows:
            _refuse(f"line {line}: the file has more than {limits.max_rows} rows. Split it into several files.")
        piece = "\n".join(lines) + "\n\n"
        self._sections.append(Section(self._length, (name,)))
        self._pieces.append(piece)
        self._length += len(piece)
        if self._length > limits.max_chars:
            _refuse(
                f"line {line}: the rows, each with the names of its columns, become more than {limits.max_chars} "
                "characters. Split the file."
            )

    def finish(self) -> ParsedDocument:
        """All rows as one document."""
        return ParsedDocument("".join(self._pieces).rstrip("\n"), None, tuple(self._sections), is_markdown=False)


def _csv_rows(text: str, delimiter: str, limits: ParsingLimits) -> Iterator[tuple[int, list[str]]]:
    """(line in which it begins, cells) of each row that is not blank."""
    # The reader's own default is 131,072; this process parses nothing else at the same time.
    csv.field_size_limit(limits.max_field_chars)
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _refuse(
                f"the row in line {line} cannot be read ({error}). Double the quotes inside a quoted cell and close "
                f"each; a cell may have {limits.max_field_chars} characters."
            )
        if any(cells):
            yield line, cells


def _sniff_delimiter(text: str) -> str:
    """The delimiter that cuts the first rows into equally many cells, and into the most; else a comma."""
    # csv.Sniffer guesses by regular expressions whose time is quadratic.
    sample = text[:_SNIFFED_CHARS]
    best, most = ",", 1
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(sample, newline="\n"), delimiter=delimiter, skipinitialspace=True)
        widths = []
        try:
            for cells in reader:
                # The sample may end within a row.
                if reader.line_num > sample.count("\n") and len(sample) < len(text):
                    break
                if cells:
                    widths.append(len(cells))
                if len(widths) == _NUM_SNIFFED_ROWS:
                    break
        except csv.Error:
            continue
        if widths and len(set(widths)) == 1 and widths[0] > most:
            best, most = delimiter, widths[0]
    return best


def _column_names(line: int, cells: list[str], limits: ParsingLimits) -> list[str]:
    if len(cells) > limits.max_columns:
        _refuse(f"line {line} names {len(cells)} columns, allowed are {limits.max_columns}. Split the table.")
    names: dict[str, int] = {}
    for number, cell in enumerate(cells, start=1):
        name = " ".join(cell.split()) or f"column {number}"
        if len(name) > _MAX_NAME_CHARS:
            _refuse(
                f"line {line}: the name of column {number} has {len(name)} characters, allowed are {_MAX_NAME_CHARS}. "
                "The first row must name the columns."
            )
        if name in names:
            _refuse(
                f"line {line}: columns {names[name]} and {number} are both named {name[:80]!r}. "
                "Give each column a name of its own."
            )
        names[name] = number
    return list(names)


def _flat(row: dict[str, Any], line: int) -> Iterator[tuple[str, str]]:
    """(dotted name, value) of each scalar, in order; scalars of one list share a line."""
    # A stack of iterators instead of recursion; its height is the depth.
    stack: list[Iterator[tuple[str, Any]]] = [iter(row.items())]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            continue
        name, value = found
        if len(name) > _MAX_NAME_CHARS:
            _refuse(f"line {line}: a name has {len(name)} characters, allowed are {_MAX_NAME_CHARS}. Shorten it.")
        if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
            yield name, ", ".join(_scalar(item) for item in value)
        elif isinstance(value, (dict, list)):
            if len(stack) == _MAX_DEPTH:
                _refuse_depth(line)
            stack.append(_members(name, value))
        else:
            yield name, _scalar(value)


def _members(name: str, value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((f"{name}.{key}", item) for key, item in value.items())
    return ((name, item) for item in value)


def _scalar(value: str | bool | None) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")


def _refuse_depth(line: int) -> NoReturn:
    _refuse(f"line {line} is nested deeper than {_MAX_DEPTH} levels. Flatten it.")


def _refuse(message: str) -> NoReturn:
    raise UnparsableDocument(message, param="body")
