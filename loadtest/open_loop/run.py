"""What an open-loop run was asked to do, and what happened meanwhile: run.json beside its requests."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.durable_files import write_file
from engine.errors import ConfigError
from loadtest.measures import Slo

RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that was done to the server at a second of the run, such as a node that was killed."""

    at_s: float
    label: str


@dataclass(frozen=True)
class LoadRun:
    """Everything but the requests.

    `num_planned` requests were to be sent; fewer rows mean that the run was ended early. `started_unix` is the wall
    clock at second 0, in seconds.
    """

    url: str
    shape: str
    arrivals: str
    seed: int
    workload: str
    slo_ttft_ms: float
    slo_tpot_ms: float
    max_lag_ms: float
    max_in_flight: int
    num_planned: int = 0
    started_unix: float = 0.0
    happenings: tuple[Happening, ...] = ()

    @property
    def slo(self) -> Slo:
        return Slo(self.slo_ttft_ms / 1000, self.slo_tpot_ms / 1000)

    def write(self, folder: Path) -> None:
        """Write run.json into `folder`. Raises: OSError."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        write_file(folder / RUN_FILE, f"{text}\n".encode(errors="backslashreplace"))


def read_run(folder: Path) -> LoadRun:
    """The run.json of a folder. Raises: ConfigError where there is none, or it is none of ours."""
    path = folder / RUN_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        happenings = tuple(Happening(float(each["at_s"]), str(each["label"])) for each in raw.pop("happenings"))
        return LoadRun(**raw, happenings=happenings)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name the folder of a run.") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is no run of an open-loop load test. Name the folder of a run.") from None


def parse_happening(text: str) -> Happening:
    """`12.5 worker killed`: seconds from the beginning, then words. Raises: ConfigError."""
    at, _, label = text.strip().partition(" ")
    try:
        at_s = float(at)
    except ValueError:
        at_s = math.nan
    if not math.isfinite(at_s) or not label.strip():
        raise ConfigError(f"{text!r}: an event is a second of the run and words, as '12.5 worker killed'")
    return Happening(at_s, label.strip())


def read_happenings(path: Path, started_unix: float) -> list[Happening]:
    """Events that a script noted, one JSON object a line: `{"unix_s": 1790000000.5, "label": "worker killed"}`.

    `at_s`, seconds from the beginning of the run, may stand in place of `unix_s`.

    Raises: ConfigError naming the line that is not one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}). Name a file of events.") from None
    return [_happening(line, f"{path}:{number}", started_unix) for number, line in enumerate(lines, 1) if line.strip()]


def _happening(line: str, where: str, started_unix: float) -> Happening:
    try:
        row: dict[str, Any] = json.loads(line)
        at_s = float(row["at_s"]) if "at_s" in row else float(row["unix_s"]) - started_unix
        if math.isfinite(at_s) and isinstance(row["label"], str):
            return Happening(at_s, row["label"])
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f'{where}: is not an event like {{"unix_s": 1790000000.5, "label": "worker killed"}}')


def in_order(happenings: Sequence[Happening]) -> tuple[Happening, ...]:
    return tuple(sorted(happenings, key=lambda each: each.at_s))
