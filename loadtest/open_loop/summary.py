"""Figures of an open-loop run: each part of its shape, the knee, the client's own lateness. No files, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.bench_format import OURS, Row
from loadtest.measures import Slo, percentile
from loadtest.open_loop.arrivals import Shape
from loadtest.open_loop.request_log import Request

# The knee: the highest rate of which at least this share was answered within the objective, as at all lower rates.
KNEE_SHARE = 0.95
PERCENTS = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class PartFigures:
    """One part of the shape. Requests belong to the part in which they were due, whenever they ended.

    `num_answered` is what was completed while the part lasted, whenever it was due: a server that falls behind
    answers the rest later.
    """

    rate_s: float
    start_s: float
    duration_s: float
    requests: tuple[Request, ...]
    num_good: int
    num_answered: int

    @property
    def num_offered(self) -> int:
        return len(self.requests)

    @property
    def offered_s(self) -> float:
        """Requests per second that were due: what was drawn, which is about `rate_s`."""
        return self.num_offered / self.duration_s

    @property
    def goodput_s(self) -> float:
        """Requests per second that were answered within the objective."""
        return self.num_good / self.duration_s

    def balanced_goodput_s(self, slo: Slo) -> float:
        """Requests per second within the objective if every kind got no more of them than the worst served one.

        Searches are cheap: the more are sent, the more are answered, whatever becomes of the answers beside them.
        """
        kinds: dict[bool, list[bool]] = {}
        for each in self.requests:
            kinds.setdefault(each.kind == "search", []).append(each.keeps(slo))
        return self.offered_s * min((sum(kept) / len(kept) for kept in kinds.values()), default=0.0)

    @property
    def good_share(self) -> float | None:
        return self.num_good / self.num_offered if self.requests else None

    def count(self, ending: str) -> int:
        """Requests that ended so."""
        return sum(each.ending == ending for each in self.requests)

    @property
    def answered_s(self) -> float:
        """Throughput: complete answers per second while the part lasted."""
        return self.num_answered / self.duration_s

    def ttfts_ms(self) -> list[float]:
        """Of complete streams."""
        return _milliseconds(self.requests, lambda each: each.ttft_s)

    def e2es_ms(self) -> list[float]:
        """Whole latencies of complete streams."""
        return _milliseconds(self.requests, lambda each: each.latency_s if each.ttft_s is not None else None)


def part_figures(requests: Sequence[Request], shape: Shape, slo: Slo) -> list[PartFigures]:
    """Figures of each part of the shape, in order."""
    by_part: list[list[Request]] = [[] for _ in shape.parts]
    for request in requests:
        by_part[request.part].append(request)
    ends_s = [each.end_s for each in requests if each.ending == "complete" and each.end_s is not None]
    made = []
    for part, start_s, own in zip(shape.parts, shape.starts_s(), by_part, strict=True):
        num_good = sum(each.keeps(slo) for each in own)
        num_answered = sum(start_s <= end_s < start_s + part.duration_s for end_s in ends_s)
        rate_s = part.arrivals / part.duration_s
        made.append(PartFigures(rate_s, start_s, part.duration_s, tuple(own), num_good, num_answered))
    return made


def find_knee(parts: Sequence[PartFigures]) -> int | None:
    """The place of the knee: the last part, from the first on, whose goodput is KNEE_SHARE of what was offered.

    None where not even the first part kept it, or nothing was offered.
    """
    place = None
    for number, part in enumerate(parts):
        if part.good_share is None or part.good_share < KNEE_SHARE:
            break
        place = number
    return place


@dataclass(frozen=True, slots=True)
class Lag:
    """How much later than due the client sent its requests, in milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float


def client_lag(requests: Iterable[Request]) -> Lag | None:
    """None where nothing was sent."""
    lags = [1000 * each.lag_s for each in requests if each.lag_s is not None]
    return Lag(percentile(lags, 50), percentile(lags, 99), max(lags)) if lags else None


def failures(requests: Iterable[Request]) -> Counter[tuple[str, str, str]]:
    """Requests that failed by kind, route ("" where none was known) and message."""
    return Counter((each.kind, each.route or "", each.error or "") for each in requests if each.ending == "failed")


def rejections(requests: Iterable[Request]) -> dict[tuple[int, str], list[Request]]:
    """Requests that were rejected by status and kind."""
    found: dict[tuple[int, str], list[Request]] = {}
    for each in requests:
        if each.ending == "rejected":
            found.setdefault((each.status or 0, each.kind), []).append(each)
    return dict(sorted(found.items()))


MEASURES: dict[str, Callable[[Request], float | None]] = {
    "TTFT": lambda each: None if each.ttft_s is None else 1000 * each.ttft_s,
    "ITL": lambda each: each.itl_ms,
    "TPOT": lambda each: None if each.tpot_s is None else 1000 * each.tpot_s,
    "E2E": lambda each: None if each.latency_s is None or each.ttft_s is None else 1000 * each.latency_s,
    "WHOLE": lambda each: 1000 * each.latency_s if each.kind == "chat" and each.latency_s is not None else None,
    "SEARCH": lambda each: 1000 * each.latency_s if each.kind == "search" and each.latency_s is not None else None,
}


def by_route(requests: Iterable[Request]) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of complete answers by measure (of MEASURES) and route."""
    complete = [each for each in requests if each.ending == "complete"]
    found: dict[tuple[str, str], list[float]] = {}
    for name, measure in MEASURES.items():
        for route in sorted({each.route or "" for each in complete}):
            values = [value for each in complete if each.route == route and (value := measure(each)) is not None]
            if values:
                found[name, route] = values
    return found


def bench_rows(parts: Sequence[PartFigures], requests: Sequence[Request]) -> list[Row]:
    """Rows of a result file: one case for each part, one for each route. Latencies are p50 with p20 and p80."""
    rows = []
    for number, part in enumerate(parts, 1):
        case = f"part {number}: {part.rate_s:g}/s"
        figures: dict[str, tuple[str, float]] = {
            "offered": ("requests/s", part.offered_s),
            "answered": ("requests/s", part.answered_s),
            "goodput": ("requests/s", part.goodput_s),
            **{name.replace(" ", "_"): ("requests", part.count(name)) for name in ("rejected", "failed", "not sent")},
        }
        rows += [Row(case, OURS, name, unit, value, value, value) for name, (unit, value) in figures.items()]
        for name, values in (("ttft", part.ttfts_ms()), ("e2e", part.e2es_ms())):
            rows += _latency_rows(case, name, values)
    for (measure, route), values in by_route(requests).items():
        rows += _latency_rows(f"route {route}", measure.lower(), values)
    return rows


def _latency_rows(case: str, name: str, values: Sequence[float]) -> list[Row]:
    if not values:
        return []
    p20, p80 = percentile(values, 20), percentile(values, 80)
    tails = [(f"{name}_p{percent}", percentile(values, percent)) for percent in PERCENTS[1:]]
    return [
        Row(case, OURS, f"{name}_p50", "ms", percentile(values, 50), p20, p80),
        *(Row(case, OURS, tail, "ms", value, value, value) for tail, value in tails),
    ]


def figures(parts: Sequence[PartFigures], requests: Sequence[Request], shape: Shape) -> dict[str, Any]:
    """What a result file says beside its rows."""
    lag = client_lag(requests)
    place = find_knee(parts) if shape.rises else None
    return {
        "knee": None
        if place is None
        else {
            "rate_s": parts[place].rate_s,
            "goodput_s": parts[place].goodput_s,
            "is_highest_tried": place == len(parts) - 1,
        },
        "client_lag_ms": None if lag is None else {"p50": lag.p50_ms, "p99": lag.p99_ms, "max": lag.max_ms},
        "endings": dict(Counter(each.ending for each in requests)),
        "rejected": {f"{status} {kind}": len(rows) for (status, kind), rows in rejections(requests).items()},
        "failures": [
            {"kind": kind, "route": route, "message": message, "count": count}
            for (kind, route, message), count in failures(requests).most_common()
        ],
    }


def _milliseconds(requests: Iterable[Request], seconds: Callable[[Request], float | None]) -> list[float]:
    complete = (seconds(each) for each in requests if each.ending == "complete")
    return [1000 * value for value in complete if value is not None]
