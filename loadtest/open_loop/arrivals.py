"""When requests of an open-loop load test are due: a shape of rates, and arrival times drawn for it.

    steps:0.5,1,2,4x30s     each rate for 30 s
    spike:1,10x60s,1        before, peak and after; 30 s where a part names no time
    ramp:0.5,4x120s         from one rate to the other over 120 s
    constant:2x60s          one rate

Rates are requests per second. Nothing here waits or sends, so every shape is tested without a clock.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from engine.errors import ConfigError

DEFAULT_PART_S = 30.0
# A ramp is reported in this many parts of equal time.
RAMP_PARTS = 10
# What one run may offer at most: it is held in memory, and a typing error must not offer a million requests.
MAX_ARRIVALS = 200_000

Process = Literal["poisson", "even"]
_PART = re.compile(r"(?P<rate>\d+(\.\d+)?)(x(?P<time>\d+(\.\d+)?)(?P<unit>s|m))?")
_EXAMPLES = "steps:0.5,1,2,4x30s, spike:1,10x60s,1, ramp:0.5,4x120s, constant:2x60s"


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the run in which the rate moves from `start` to `end` (requests/s) in a straight line."""

    start: float
    end: float
    duration_s: float

    @property
    def arrivals(self) -> float:
        """Requests that are due in it on average."""
        return (self.start + self.end) / 2 * self.duration_s

    def at_s(self, arrivals: float) -> float:
        """Seconds from its beginning until `arrivals` of its requests were due on average."""
        # The root of start * t + slope * t^2 / 2 = arrivals, in the form that also holds for a slope of 0.
        slope = (self.end - self.start) / self.duration_s
        return 2 * arrivals / (self.start + math.sqrt(max(self.start**2 + 2 * slope * arrivals, 0.0)))


@dataclass(frozen=True, slots=True)
class Shape:
    """The rates of a run, in order. `text` is how it was asked for."""

    text: str
    parts: tuple[Part, ...]

    @property
    def duration_s(self) -> float:
        return sum(part.duration_s for part in self.parts)

    @property
    def rises(self) -> bool:
        """Whether each part offers more than the one before, so that a knee can be looked for."""
        rates = [part.arrivals / part.duration_s for part in self.parts]
        return len(rates) > 1 and all(earlier < later for earlier, later in pairwise(rates))

    def starts_s(self) -> list[float]:
        """When each part begins, in seconds from the beginning of the run."""
        starts, at_s = [], 0.0
        for part in self.parts:
            starts.append(at_s)
            at_s += part.duration_s
        return starts


def parse_shape(text: str) -> Shape:
    """A shape from its one-line form.

    Raises: ConfigError naming what is wrong with it.
    """
    kind, _, rest = text.partition(":")
    parts = [_parse_part(each, text) for each in rest.split(",")]
    # steps share the time that the last of them names; others have times of their own.
    if kind == "steps":
        each_s = parts[-1][1] or DEFAULT_PART_S
        made = [Part(rate, rate, own_s or each_s) for rate, own_s in parts]
    elif kind == "spike":
        if len(parts) != 3 or not parts[0][0] < parts[1][0] > parts[2][0]:
            raise ConfigError(f"{text!r}: a spike has three rates with the highest in the middle, as spike:1,10x60s,1")
        made = [Part(rate, rate, own_s or DEFAULT_PART_S) for rate, own_s in parts]
    elif kind == "ramp":
        if len(parts) != 2 or parts[1][1] is None:
            raise ConfigError(f"{text!r}: a ramp has two rates and a time, as ramp:0.5,4x120s")
        (first, _), (last, whole_s) = parts
        made = _ramp(first, last, whole_s or DEFAULT_PART_S)
    elif kind == "constant":
        if len(parts) != 1 or parts[0][1] is None:
            raise ConfigError(f"{text!r}: a constant shape has one rate and a time, as constant:2x60s")
        made = [Part(parts[0][0], parts[0][0], parts[0][1])]
    else:
        raise ConfigError(f"{text!r} is not a shape; shapes are {_EXAMPLES}")
    shape = Shape(text, tuple(made))
    expected = sum(part.arrivals for part in shape.parts)
    if expected > MAX_ARRIVALS:
        raise ConfigError(f"{text!r} offers {expected:,.0f} requests; at most {MAX_ARRIVALS:,} are sent in one run")
    return shape


def _parse_part(text: str, whole: str) -> tuple[float, float | None]:
    match = _PART.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{whole!r}: {text!r} is not RATE or RATExTIME, as 2 or 2x30s; shapes are {_EXAMPLES}")
    rate = float(match["rate"])
    time_s = None if match["time"] is None else float(match["time"]) * (60 if match["unit"] == "m" else 1)
    if not rate > 0 or time_s == 0:
        raise ConfigError(f"{whole!r}: {text!r} must be above 0")
    return rate, time_s


def _ramp(first: float, last: float, duration_s: float) -> list[Part]:
    rates = [first + (last - first) * place / RAMP_PARTS for place in range(RAMP_PARTS + 1)]
    return [Part(start, end, duration_s / RAMP_PARTS) for start, end in pairwise(rates)]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is due `at_s` seconds after the beginning, in part number `part` of the shape."""

    at_s: float
    part: int


def draw(shape: Shape, process: Process, seed: int) -> Iterator[Arrival]:
    """Arrivals in order of time.

    Args:
        process: poisson: gaps are exponential, so requests bunch as those of independent users do; even: one after
            the other at the rate.
        seed: the same seed gives the same times.
    """
    gap = _gaps(process, seed)
    # Arrivals of a process with rate 1, stretched to the rate of the moment: exact for any shape.
    due = gap()
    for number, (part, start_s) in enumerate(zip(shape.parts, shape.starts_s(), strict=True)):
        while due <= part.arrivals:
            yield Arrival(start_s + min(part.at_s(due), part.duration_s), number)
            due += gap()
        due -= part.arrivals


def _gaps(process: Process, seed: int) -> Callable[[], float]:
    if process == "even":
        return lambda: 1.0
    # Other draws of a run begin with the seed itself: gaps must not say which kind of request comes.
    generator = random.Random(f"arrivals {seed}")
    return lambda: generator.expovariate(1.0)
