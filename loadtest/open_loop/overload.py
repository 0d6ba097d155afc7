"""What overload does: a spike of ten times the knee, and whether the server protected itself.

    python -m loadtest.open_loop.overload --knee 1 --data .switchyard --out overload
    python -m loadtest.open_loop.overload --knee 1 --factor 10 --seconds 60 --url http://127.0.0.1:8000

Offers 80 % of the knee, then `factor` times the knee, then 80 % again, in an open loop. Judged are four figures:

| figure | holds where |
|---|---|
| surplus | whatever was not answered in the spike got 429 or 503 with Retry-After, within 200 ms at p99 |
| goodput | in the spike at least 80 % of the knee |
| memory | of the server's processes grows by at most 5 % from the second quarter of the spike to its last |
| recovery | 5 s after the spike or earlier, requests are answered within the objective again, to the end |

Memory is left out, and said to be, where the server's data folder is not named or not on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from engine.durable_files import write_file
from engine.errors import ConfigError, SwitchyardError
from loadtest.__main__ import DEFAULT_URL, check_locust, check_server, command
from loadtest.measures import percentile
from loadtest.open_loop.arrivals import parse_shape
from loadtest.open_loop.request_log import REQUESTS_FILE, read_requests
from loadtest.open_loop.run import LoadRun, read_run
from loadtest.open_loop.server_memory import MemoryWatch, Sample, server_pid, tree_rss_bytes
from loadtest.open_loop.summary import PartFigures, part_figures

BASE_SHARE = 0.8
MAX_REJECTION_MS, MIN_GOODPUT_SHARE, MAX_GROWTH, MAX_RECOVERY_S = 200.0, 0.8, 0.05, 5.0
OVERLOAD_FILE = "overload.json"
_SPIKE = 1  # its part of the shape
_END_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of the four figures. `holds` None: it was not measured; `words` says why."""

    name: str
    holds: bool | None
    value: float | None
    unit: str
    words: str


def spike_shape(knee_s: float, factor: float, seconds: float) -> str:
    """The shape of an overload test; half of the spike's time stands before and after it, 15 s at least."""
    around_s = max(15.0, seconds / 2)
    base = f"{BASE_SHARE * knee_s:g}x{around_s:g}s"
    return f"spike:{base},{factor * knee_s:g}x{seconds:g}s,{base}"


def judge(parts: Sequence[PartFigures], run: LoadRun, knee_s: float, samples: Sequence[Sample]) -> list[Verdict]:
    """The four figures of a run of `spike_shape`, in the order of the module's table."""
    spike, after = parts[_SPIKE], parts[_SPIKE + 1]
    return [_surplus(spike), _goodput(spike, knee_s), _memory(spike, run, samples), _recovery(spike, after, run)]


def _surplus(spike: PartFigures) -> Verdict:
    refused_ms = [1000 * each.latency_s for each in spike.requests if each.ending == "rejected" and each.latency_s]
    others = sum(spike.count(ending) for ending in ("failed", "cut off", "not sent"))
    elsewhere = f"{others} requests ended otherwise (failed, cut off or not sent)"
    if not refused_ms:
        words = f"nothing was rejected; {elsewhere}"
        return Verdict("surplus", None if others == 0 else False, None, "ms", words)
    p50, p99 = percentile(refused_ms, 50), percentile(refused_ms, 99)
    words = (
        f"{len(refused_ms)} of {spike.num_offered} rejected with Retry-After, in {p50:.0f} ms at p50, "
        f"{p99:.0f} at p99, {max(refused_ms):.0f} at most; {elsewhere}"
    )
    return Verdict("surplus", p99 < MAX_REJECTION_MS and others == 0, p99, "ms", words)


def _goodput(spike: PartFigures, knee_s: float) -> Verdict:
    share = spike.goodput_s / knee_s
    words = f"{spike.goodput_s:.2f}/s within the objective, {share:.0%} of the knee's {knee_s:g}/s"
    return Verdict("goodput", share >= MIN_GOODPUT_SHARE, share, "of the knee", words)


def _memory(spike: PartFigures, run: LoadRun, samples: Sequence[Sample]) -> Verdict:
    start_s = run.started_unix + spike.start_s
    quarters: list[list[int]] = [[], [], [], []]
    for sample in samples:
        place = int(4 * (sample.unix_s - start_s) // spike.duration_s)
        if 0 <= place < 4 and sample.rss_bytes:
            quarters[place].append(sample.rss_bytes)
    # The first quarter is left out: batches and caches that are bounded fill up in it.
    if not quarters[1] or not quarters[3]:
        return Verdict("memory", None, None, "growth", "not measured: the server's processes were not seen (--data)")
    before, last = median(quarters[1]), median(quarters[3])
    growth = last / before - 1
    words = (
        f"{before / 2**20:,.0f} MiB in the second quarter of the spike, {last / 2**20:,.0f} in the last ({growth:+.1%})"
    )
    return Verdict("memory", growth <= MAX_GROWTH, growth, "growth", words)


def _recovery(spike: PartFigures, after: PartFigures, run: LoadRun) -> Verdict:
    ended_s = spike.start_s + spike.duration_s
    in_order = sorted(after.requests, key=lambda each: each.intended_s)
    bad = [each for each in in_order if not each.keeps(run.slo)]
    if not in_order:
        return Verdict("recovery", None, None, "s", "not measured: nothing was due after the spike")
    if not bad:
        return Verdict("recovery", True, 0.0, "s", "every request after the spike was answered within the objective")
    recovered = [each for each in in_order if each.intended_s > bad[-1].intended_s]
    if not recovered:
        words = f"not in the {after.duration_s:g} s that were watched: {len(bad)} of {len(in_order)} late or refused"
        return Verdict("recovery", False, None, "s", words)
    took_s = recovered[0].intended_s - ended_s
    words = f"{took_s:.1f} s after the spike all requests were within the objective again ({len(bad)} before were not)"
    return Verdict("recovery", took_s < MAX_RECOVERY_S, took_s, "s", words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 where all that was measured holds, 1 where something does not."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.open_loop.overload",
        description=lines[0],
        epilog="\n".join(itertools.islice(lines, 1, None)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="server (%(default)s)")
    parser.add_argument("--knee", type=float, required=True, help="requests/s that the server sustains", metavar="RATE")
    parser.add_argument("--factor", type=float, default=10.0, help="overload, in knees (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the spike (%(default)s)")
    parser.add_argument("--data", type=Path, help="data folder of the server, where it runs on this machine")
    parser.add_argument("--out", type=Path, default=Path("loadtest-out"), help="folder of the report (%(default)s)")
    options, more = parser.parse_known_args(arguments)
    try:
        return _run(options.url.rstrip("/"), options, more)
    except SwitchyardError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1


def _run(url: str, options: argparse.Namespace, more: Sequence[str]) -> int:
    if not (options.knee > 0 and options.factor > 1 and options.seconds >= 1):
        raise ConfigError("--knee must be above 0, --factor above 1 and --seconds 1 or more")
    shape = parse_shape(spike_shape(options.knee, options.factor, options.seconds))
    check_locust()
    check_server(url)
    watch = None
    if options.data is not None:
        pid = server_pid(options.data)
        watch = MemoryWatch(lambda: tree_rss_bytes(pid))
    with watch or contextlib.nullcontext():
        flags = ["--shape", shape.text, "--out", str(options.out), "--max-in-flight", "2048", *more]
        code = _run_locust(command(url, flags))
    if code not in (0, 1):
        return code
    run, requests = read_run(options.out), read_requests(options.out / REQUESTS_FILE)
    parts = part_figures(requests, shape, run.slo)
    verdicts = judge(parts, run, options.knee, [] if watch is None else watch.samples)
    content = json.dumps({"shape": shape.text, "knee_s": options.knee, "figures": [asdict(each) for each in verdicts]})
    write_file(options.out / OVERLOAD_FILE, f"{content}\n".encode())
    console = Console()
    for each in verdicts:
        holds = "not judged" if each.holds is None else "holds" if each.holds else "does not hold"
        console.print(f"{each.name}: {holds}; {each.words}", markup=False, highlight=False, soft_wrap=True)
    return 0 if all(each.holds is not False for each in verdicts) else 1


def _run_locust(locust: Sequence[str]) -> int:
    process = subprocess.Popen(locust)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal told locust too; an overload that was cut short is not judged.
        process.wait(timeout=_END_TIMEOUT_S)
        return 130
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
