"""The report of an open-loop run: report.html, which needs nothing else, and report.json with the same figures.

    python -m loadtest.open_loop.report OUT
    python -m loadtest.open_loop.report OUT --event "42.5 worker killed" --events kills.jsonl

The folder is one that the load test wrote (--out). Made anew from its requests.csv, so events may be added later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from engine.errors import ConfigError, SwitchyardError
from engine.report.document import Tone, document, write_document
from engine.report.html import Content, Html, quoted, section, table, tag
from engine.report.wording import counted, percent
from loadtest.bench_format import Report
from loadtest.measures import percentile
from loadtest.open_loop.arrivals import Shape, parse_shape
from loadtest.open_loop.plots import distribution_plots, goodput_plot, latency_plots, timeline_plots
from loadtest.open_loop.request_log import ENDINGS, REQUESTS_FILE, Request, read_requests
from loadtest.open_loop.run import Happening, LoadRun, in_order, parse_happening, read_happenings, read_run
from loadtest.open_loop.summary import (
    KNEE_SHARE,
    PERCENTS,
    PartFigures,
    bench_rows,
    by_route,
    client_lag,
    failures,
    figures,
    find_knee,
    part_figures,
    rejections,
)

_MAX_LISTED = 50


def make_report(folder: Path, happenings: Sequence[Happening] = ()) -> Path:
    """Write report.html and report.json of the run in `folder`, with `happenings` beside those it already has.

    Returns: the path of report.html. Raises: SwitchyardError where the folder holds no run or cannot be written.
    """
    run, requests = read_run(folder), read_requests(folder / REQUESTS_FILE)
    shape = parse_shape(run.shape)
    if any(not 0 <= each.part < len(shape.parts) for each in requests):
        raise ConfigError(f"{folder}: {REQUESTS_FILE} and the shape of run.json ({run.shape}) do not belong together")
    run = replace(run, happenings=in_order([*run.happenings, *happenings]))
    parts = part_figures(requests, shape, run.slo)
    extra = {"run": asdict(run), **figures(parts, requests, shape)}
    report = Report("load", bench_rows(parts, requests), extra=extra)
    return write_document(folder, _page(run, shape, parts, requests, report), report.content())


def is_valid(run: LoadRun, requests: Sequence[Request]) -> bool:
    """Whether the client came to all that it was to send, and kept up with it."""
    lag = client_lag(requests)
    return lag is not None and lag.p99_ms <= run.max_lag_ms and len(requests) >= run.num_planned


def print_summary(run: LoadRun, requests: Sequence[Request], console: Console) -> bool:
    """One line for each part, and what the client did. Returns whether the run is valid."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    shape = parse_shape(run.shape)
    parts = part_figures(requests, shape, run.slo)
    say(f"open loop, {run.arrivals} arrivals, {shape.text}; times count from when a request was due")
    for number, part in enumerate(parts, 1):
        endings = ", ".join(f"{part.count(name)} {name}" for name in ENDINGS if part.count(name))
        say(
            f"part {number}: {part.rate_s:g}/s for {part.duration_s:g} s, {part.num_offered} due, goodput "
            f"{part.goodput_s:.2f}/s ({endings or 'nothing was due'})"
        )
    if shape.rises:
        say(_knee_words(parts))
    say(_lag_words(run, requests))
    return is_valid(run, requests)


def _knee_words(parts: Sequence[PartFigures]) -> str:
    place = find_knee(parts)
    wanted = f"{KNEE_SHARE:.0%} of what was due was answered within the objective"
    if place is None:
        return f"knee: none; not even at {parts[0].rate_s:g}/s {wanted}"
    more = ", the highest rate that was tried" if place == len(parts) - 1 else ""
    return f"knee: {parts[place].rate_s:g}/s{more} (the highest rate at which, as at all lower ones, {wanted})"


def _lag_words(run: LoadRun, requests: Sequence[Request]) -> str:
    lag = client_lag(requests)
    if lag is None:
        return "client: sent nothing, so this run says nothing"
    words = (
        f"client: requests were sent {lag.p50_ms:.1f} ms late at p50, {lag.p99_ms:.1f} at p99, {lag.max_ms:.1f} at most"
    )
    if len(requests) < run.num_planned:
        return f"{words}; INVALID: the run was ended after {len(requests):,} of {run.num_planned:,} requests"
    if is_valid(run, requests):
        return words
    return f"{words}; INVALID: more than {run.max_lag_ms:g} ms at p99, so the client was too slow for this load"


def _page(
    run: LoadRun, shape: Shape, parts: Sequence[PartFigures], requests: Sequence[Request], report: Report
) -> Html:
    knee = find_knee(parts) if shape.rises else None
    good = sum(part.num_good for part in parts)
    tone: Tone = "good" if good >= KNEE_SHARE * len(requests) else "mixed"
    if not is_valid(run, requests) or any(each.ending == "failed" for each in requests):
        tone = "bad"
    headline = f"{good:,} of {counted(len(requests), 'request')} answered within the objective"
    reasons = [_lag_words(run, requests)]
    if shape.rises:
        reasons.insert(0, _knee_words(parts))
    slo = f"TTFT at most {run.slo_ttft_ms:g} ms and TPOT at most {run.slo_tpot_ms:g} ms"
    reasons.append(
        f"objective: {slo}; a whole answer must be there when a stream that just keeps both would be complete, "
        f"a search within {run.slo_ttft_ms:g} ms"
    )
    distributions = by_route(requests)
    plots = tag("div", latency_plots(parts), goodput_plot(parts, knee), class_="plots")
    sections = [
        section("parts", "Parts of the run", _parts_tables(parts), plots),
        section(
            "timeline",
            "The run second by second",
            tag("p", "Requests stand at the second at which they were due, whenever they ended."),
            timeline_plots(requests, run.slo, shape.duration_s, run.happenings),
            _happenings_table(run.happenings),
        ),
        section("routes", "Routes", _routes_table(distributions), distribution_plots(distributions)),
        section("errors", "Rejections and failures", _errors_tables(requests)),
        section("run", "How it was measured", _run_table(run, shape, report)),
    ]
    about = f"{run.url}, {run.arrivals} arrivals, {shape.text}, seed {run.seed}"
    return document("Load test", "Load test in an open loop", about, headline, reasons, tone, sections)


def _parts_tables(parts: Sequence[PartFigures]) -> list[Html]:
    endings = ("rejected", "failed", "cut off", "not sent")
    rates, latencies = [], []
    for number, part in enumerate(parts, 1):
        name = f"{number}: {part.rate_s:g}/s for {part.duration_s:g} s"
        per_second = (part.offered_s, part.answered_s, part.goodput_s)
        share = "-" if part.good_share is None else percent(part.good_share)
        counts = [f"{part.count(ending):,}" for ending in endings]
        rates.append([name, *(f"{value:.2f}" for value in per_second), share, *counts])
        of_streams = (part.ttfts_ms(), part.e2es_ms())
        latencies.append([name, *(f"{percentile(ms, p):,.0f}" if ms else "-" for ms in of_streams for p in PERCENTS)])
    percents = [f"{measure} p{each}" for measure in ("TTFT", "E2E") for each in PERCENTS]
    return [
        table(
            "Requests per second that were due, that were answered meanwhile (earlier ones too), and that were "
            "answered within the objective; counts of the rest",
            ("part", "due/s", "answered/s", "goodput/s", "within", *endings),
            rates,
        ),
        table("Complete streams, in ms from when they were due", ("part", *percents), latencies),
    ]


def _happenings_table(happenings: Sequence[Happening]) -> Html | None:
    if not happenings:
        return None
    rows = [(str(number), f"{each.at_s:.1f}", quoted(each.label)) for number, each in enumerate(happenings, 1)]
    return table("Events, by the numbers in the pictures", ("event", "second", "what"), rows, numeric=False)


def _routes_table(found: dict[tuple[str, str], list[float]]) -> Html:
    if not found:
        return tag("p", "Nothing was answered.")
    rows = [
        (f"{name} {route}", f"{len(values):,}", *(f"{percentile(values, each):,.1f}" for each in (20, 50, 80, 95, 99)))
        for (name, route), values in found.items()
    ]
    return table("Complete answers (ms)", ("measure and route", "count", "p20", "p50", "p80", "p95", "p99"), rows)


def _errors_tables(requests: Sequence[Request]) -> list[Html]:
    drawn = []
    if refused := rejections(requests):
        rows = []
        for (status, kind), each in refused.items():
            after_ms = [1000 * one.latency_s for one in each if one.latency_s is not None]
            waits = sorted({one.retry_after_s for one in each if one.retry_after_s is not None})
            spread = [f"{percentile(after_ms, p):,.0f}" for p in (50, 99)] + [f"{max(after_ms):,.0f}"]
            said = f"{waits[0]:g}" if len(waits) == 1 else f"{waits[0]:g} to {waits[-1]:g}" if waits else "-"
            rows.append((f"{status} {kind}", f"{len(each):,}", *spread, said))
        header = ("status and kind", "count", "p50 ms", "p99 ms", "most ms", "Retry-After s")
        drawn.append(table("Rejected at once: time from when they were due to the rejection", header, rows))
    if failed := failures(requests):
        listed: list[Sequence[Content]] = [
            (f"{kind} {route}".strip(), f"{count:,}", quoted(message))
            for (kind, route, message), count in failed.most_common(_MAX_LISTED)
        ]
        drawn.append(table("Failed", ("kind and route", "count", "message"), listed))
        if len(failed) > _MAX_LISTED:
            drawn.append(tag("p", f"{len(failed) - _MAX_LISTED:,} more kinds of failure are in {REQUESTS_FILE}."))
    return drawn or [tag("p", "Nothing was rejected and nothing failed.")]


def _run_table(run: LoadRun, shape: Shape, report: Report) -> Html:
    rows = [
        ("server", run.url),
        ("shape", f"{shape.text}: {shape.duration_s:g} s"),
        ("arrivals", f"{run.arrivals}, seed {run.seed}, at most {run.max_in_flight} waiting for an answer"),
        ("requests", run.workload),
        ("client", f"{report.machine['cpu']}, {report.machine['cores']} cores"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("commit", report.commit),
    ]
    return table(
        "Every request is in requests.csv, every figure in report.json",
        ("what", ""),
        [(name, tag("span", text, class_="wide")) for name, text in rows],
        numeric=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the report of a run anew."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m loadtest.open_loop.report", description=description)
    parser.add_argument("folder", type=Path, help="folder that the load test wrote")
    parser.add_argument("--event", action="append", default=[], metavar="'T LABEL'", help="what happened at second T")
    parser.add_argument("--events", type=Path, metavar="FILE", help='JSON lines of {"unix_s" or "at_s", "label"}')
    options = parser.parse_args(arguments)
    try:
        added = [parse_happening(each) for each in options.event]
        if options.events is not None:
            added += read_happenings(options.events, read_run(options.folder).started_unix)
        page = make_report(options.folder, added)
    except SwitchyardError as error:
        sys.exit(f"loadtest: {error}")
    Console().print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
