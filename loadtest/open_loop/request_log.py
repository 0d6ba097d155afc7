"""One row for each arrival of an open-loop run, in a CSV file that other tools read as well."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from engine.durable_files import write_file
from engine.errors import ConfigError
from loadtest.measures import Slo, tpot_s

REQUESTS_FILE = "requests.csv"

Ending = Literal["complete", "rejected", "failed", "cut off", "not sent"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)


@dataclass(frozen=True, slots=True)
class Request:
    """What became of one arrival. Times are seconds from the beginning of the run; None: it did not come to that.

    `ending` is "rejected" for 429 or 503 with Retry-After, "cut off" where the run ended first, "not sent" where as
    many requests as allowed were in flight. `itl_ms` is the mean gap between chunks, `max_gap_ms` the largest.
    """

    intended_s: float
    part: int
    kind: str
    ending: Ending
    sent_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    route: str | None = None
    status: int | None = None
    tokens: int | None = None
    itl_ms: float | None = None
    max_gap_ms: float | None = None
    retry_after_s: float | None = None
    error: str | None = None

    @property
    def lag_s(self) -> float | None:
        """How much later than intended the client sent it."""
        return None if self.sent_s is None else self.sent_s - self.intended_s

    @property
    def latency_s(self) -> float | None:
        """From the intended time to the end, so that waiting for a slow server counts."""
        return None if self.end_s is None else self.end_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """From the intended time to the first token of a stream."""
        return None if self.first_token_s is None else self.first_token_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Of a complete stream with two tokens or more."""
        if self.ending != "complete" or self.latency_s is None or self.ttft_s is None or (self.tokens or 0) < 2:
            return None
        return tpot_s(self.latency_s, self.ttft_s, self.tokens or 0)

    def keeps(self, slo: Slo) -> bool:
        """Whether it is complete and within the objective.

        A stream must keep both limits; a whole answer must be there when a stream that just keeps them would be
        complete; a search has the limit of a first token.
        """
        if self.ending != "complete" or self.latency_s is None:
            return False
        if self.ttft_s is not None:
            return self.ttft_s <= slo.ttft_s and (self.tpot_s is None or self.tpot_s <= slo.tpot_s)
        more_tokens = max((self.tokens or 1) - 1, 0) if self.kind == "chat" else 0
        return self.latency_s <= slo.ttft_s + slo.tpot_s * more_tokens


COLUMNS = tuple(each.name for each in fields(Request))
_TYPES = {name: str(kind) for name, kind in get_type_hints(Request).items()}


def write_requests(path: Path, requests: Iterable[Request]) -> None:
    """Write the rows, in order of their intended times. Raises: OSError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for request in sorted(requests, key=lambda each: each.intended_s):
        writer.writerow([_cell(getattr(request, name)) for name in COLUMNS])
    # Half of a pair of surrogates, which a server may send, has no UTF-8.
    write_file(path, text.getvalue().encode(errors="backslashreplace"))


def _cell(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def read_requests(path: Path) -> list[Request]:
    """The rows of a file that `write_requests` wrote.

    Raises: ConfigError naming the file, and the line that is not one of ours.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != COLUMNS:
                raise ConfigError(f"{path}: has other columns than {', '.join(COLUMNS)}. Name the folder of a run.")
            return [_request(row, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}). Name the folder of a run.") from None


def _request(row: Sequence[str], where: str) -> Request:
    try:
        cells = zip(COLUMNS, row, strict=True)
        values = {name: _value(_TYPES[name], cell) for name, cell in cells}
        if values["ending"] not in ENDINGS:
            raise ValueError
        return Request(**values)
    except (ValueError, TypeError):
        raise ConfigError(f"{where}: is not a request of an open-loop run: {','.join(row)[:80]}") from None


def _value(kind: str, cell: str) -> Any:
    if not cell and "None" in kind:
        return None
    return float(cell) if "float" in kind else int(cell) if "int" in kind else cell
