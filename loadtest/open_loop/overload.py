"""What overload does: a spike of ten times the knee, and whether the server protected itself.

    python -m loadtest.open_loop.overload --data .switchyard --out overload
    python -m loadtest.open_loop.overload --knee 1.5 --factor 10 --seconds 60 --url http://127.0.0.1:8000

The knee is the goodput beyond which more requests bring no more of them within the objective, where no kind (answers,
searches) counts for more than its part: searches are cheap, and more of them would always be answered. It is searched
for in steps of even arrivals, each offering half as much again, until two in a row brought less than 5 % more. Then
80 % of the knee are offered, `--factor` times the knee, and 80 % again, in an open loop. Judged are:

| figure | holds where |
|---|---|
| surplus | whatever was not answered in the spike got 429 or 503 with Retry-After, within 200 ms at p99 |
| goodput | in the spike at least 80 % of the knee |
| answers | the same of streamed and whole answers alone: searches, which are cheap, do not make up for them |
| memory | of the server's processes grows by at most 5 % from the second quarter of the spike to its last |
| recovery | 5 s after the spike or earlier: from then on, at least 90 % of the share in time that was there before |
| sender | the client took at most half a core, and was late by no more than --max-lag-ms at p99 |

Memory is left out, and said to be, where the server's data folder is not named or not on this machine. What each of
its processes used of the cores and of memory, and what everything else on the machine did, is in overload.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import resource
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.errors import ConfigError, SwitchyardError
from loadtest.__main__ import DEFAULT_URL, check_locust, check_server, command
from loadtest.open_loop.arrivals import parse_shape
from loadtest.open_loop.knee import FoundKnee, search_knee
from loadtest.open_loop.protection import judge, spike_shape
from loadtest.open_loop.request_log import REQUESTS_FILE, read_requests
from loadtest.open_loop.run import RUN_FILE, LoadRun, read_run
from loadtest.open_loop.server_processes import Sample, ServerWatch, sample_tree, server_pid, used_between
from loadtest.open_loop.summary import PartFigures, part_figures
from loadtest.verdicts import print_verdicts, write_verdicts

OVERLOAD_FILE = "overload.json"
_END_TIMEOUT_S = 30


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
    parser.add_argument(
        "--knee", type=_knee, default="auto", help="requests/s that the server sustains (%(default)s)", metavar="RATE"
    )
    parser.add_argument("--knee-from", type=float, default=0.5, help="first rate of the search (%(default)s)")
    parser.add_argument("--step-seconds", type=float, default=20.0, help="length of its steps (%(default)s)")
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
    except KeyboardInterrupt:
        return 130  # an overload that was cut short is not judged


def _knee(text: str) -> float | None:
    return None if text == "auto" else float(text)


def _run(url: str, options: argparse.Namespace, more: Sequence[str]) -> int:
    given = [options.knee_from if options.knee is None else options.knee, options.step_seconds]
    if not (min(given) > 0 and options.factor > 1 and options.seconds >= 1):
        raise ConfigError(
            "--knee, --knee-from and --step-seconds must be above 0, --factor above 1 and --seconds 1 or more"
        )
    check_locust()
    check_server(url)
    watch = None
    if options.data is not None:
        pid = server_pid(options.data)
        watch = ServerWatch(lambda: sample_tree(pid))
    console = Console()
    knee = _find_knee(url, options, more, console) if options.knee is None else FoundKnee(options.knee, ())
    shape = spike_shape(knee.goodput_s, options.factor, options.seconds)
    with watch or contextlib.nullcontext():
        cpu_s = _children_cpu_s()
        run, parts = _load(url, shape, options.out, more)
        cpu_s = _children_cpu_s() - cpu_s
    samples = [] if watch is None else watch.samples
    verdicts = judge(parts, run, knee.goodput_s, samples, cpu_s)
    write_verdicts(
        options.out / OVERLOAD_FILE,
        verdicts,
        shape=shape,
        knee_s=knee.goodput_s,
        knee_steps=[asdict(step) for step in knee.steps],
        processes=_processes(parts, run, samples),
    )
    return print_verdicts(verdicts, console)


def _processes(parts: Sequence[PartFigures], run: LoadRun, samples: Sequence[Sample]) -> dict[str, Any]:
    """What each process of the server used before, in and after the spike."""
    starts = [run.started_unix + part.start_s for part in parts]
    return {
        name: used_between(samples, start, start + part.duration_s)
        for name, start, part in zip(("before", "spike", "after"), starts, parts, strict=True)
    }


def _find_knee(url: str, options: argparse.Namespace, more: Sequence[str], console: Console) -> FoundKnee:
    def goodput_s(rate_s: float) -> float:
        shape = f"constant:{rate_s:g}x{options.step_seconds:g}s"
        # Even arrivals: the luck of a few bursts is not to choose the knee.
        run, (step,) = _load(url, shape, options.out / "knee" / f"{rate_s:g}", ["--arrivals", "even", *more])
        goodput_s = step.balanced_goodput_s(run.slo)
        console.print(f"{rate_s:g}/s: goodput {goodput_s:.2f}/s", markup=False, highlight=False)
        return goodput_s

    found = search_knee(goodput_s, options.knee_from)
    console.print(f"knee: {found.goodput_s:.2f}/s", markup=False, highlight=False)
    return found


def _load(url: str, shape: str, out: Path, more: Sequence[str]) -> tuple[LoadRun, list[PartFigures]]:
    """Send one shape. Raises: SwitchyardError where the client failed, other than by being late."""
    parsed = parse_shape(shape)
    (out / RUN_FILE).unlink(missing_ok=True)  # an earlier one is not judged in place of this one
    # A question that was asked before is answered faster, out of the cache of prompts; no two runs ask the same.
    seed = zlib.crc32(shape.encode())
    flags = ["--shape", shape, "--out", str(out), "--combine", "3", "--order-seed", f"{seed}"]
    flags += ["--max-in-flight", "2048", *more]
    code = _run_locust(command(url, flags))
    if code not in (0, 1):
        raise SwitchyardError(f"the load test ended with exit code {code}; what it printed above says why")
    run = read_run(out)
    return run, part_figures(read_requests(out / REQUESTS_FILE), parsed, run.slo)


def _children_cpu_s() -> float:
    """Processor time of all child processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run_locust(locust: Sequence[str]) -> int:
    process = subprocess.Popen(locust)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait(timeout=_END_TIMEOUT_S)  # the terminal told locust too
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
