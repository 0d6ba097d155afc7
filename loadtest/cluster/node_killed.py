"""Two Ray nodes on this machine under open-loop load, one of them killed in the middle and started again.

    python -m loadtest.cluster.node_killed --out node-killed
    python -m loadtest.cluster.node_killed --seconds 60 --rate 1 --generator FOLDER --encoder FOLDER

Searches, direct answers and answers with passages arrive by Poisson while documents are written one after another.
Judged are:

| figure | holds where |
|---|---|
| answers | every request was answered, or refused by 503 with Retry-After or an error that names what is unavailable |
| full service | 30 s after the kill or earlier, every request is answered again, to the end |
| kept | every document whose write was acknowledged is there in the end, as it was sent |
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.__main__ import check_locust
from loadtest.cluster.commands import command_parser, fetch_models, print_judged, serve_file
from loadtest.cluster.nodes import local_cluster
from loadtest.cluster.under_load import Happened, answers_verdict, ingest_docs, under_load
from loadtest.cluster.writer import Writer
from loadtest.open_loop.request_log import Request
from loadtest.ports import free_port
from loadtest.verdicts import Verdict

MAX_OUTAGE_S = 30.0
# The machine comes back, as under an operator that replaces it.
_BACK_AFTER_S = 10.0


def serve_config(data: Path, port: int, generator: str, encoder: str) -> dict[str, Any]:
    """A generator on each of two nodes of one CPU, two gateways, one retriever."""
    args = {
        "profile": "cpu",
        "data": str(data),
        "gateway": {"num_replicas": 2, "num_cpus": 0},
        "retriever": {"num_cpus": 0.1, "model": encoder},
        "generator": {"num_cpus": 0.8, "num_replicas": 2, "threads": 1, "model": generator},
    }
    return serve_file(port, args)


def run(out: Path, *, seconds: float, rate: float, generator: str, encoder: str, flags: Sequence[str]) -> list[Verdict]:
    """Run it and write the report into `out`. `flags` go to the load test."""
    out.mkdir(parents=True, exist_ok=True)
    with local_cluster() as cluster:
        cluster.start_head(num_cpus=1)
        doomed = cluster.add_node(num_cpus=1)
        url = cluster.deploy(serve_config(out.absolute() / "data", free_port(), generator, encoder))
        ingest_docs(url)
        writer = Writer(url)
        writer.start()

        def kill_and_start(happened: Happened) -> None:
            time.sleep(seconds / 2)
            doomed.kill()
            happened("node killed")
            time.sleep(_BACK_AFTER_S)
            cluster.add_node(num_cpus=1)
            happened("node back")

        try:
            requests, happenings, _ = under_load(url, out, kill_and_start, seconds=seconds, rate=rate, flags=flags)
        finally:
            writer.stop()
        return judge(requests, happenings[0].at_s, seconds, writer, writer.lost())


def judge(
    requests: Sequence[Request], killed_s: float, seconds: float, writer: Writer, lost: list[str]
) -> list[Verdict]:
    """The figures, in the order of the module's table."""
    late = [each.intended_s - killed_s for each in requests if each.ending != "complete"]
    outage_s = max(late, default=0.0)
    watched_s = seconds - killed_s
    words = f"the last request that was not answered came {max(outage_s, 0):.1f} s after the kill, of {watched_s:.0f} s"
    service = Verdict("full service", outage_s < MAX_OUTAGE_S < watched_s, outage_s, "s", words)
    return [answers_verdict(requests), service, writer.verdict(lost)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 where all figures hold."""
    parser = command_parser("node_killed", __doc__, rate=1.0)
    parser.add_argument("--out", type=Path, default=Path("node-killed"), help="folder of the report (%(default)s)")
    parser.add_argument("--seconds", type=float, default=80.0, help="of load; the kill comes in the middle")
    options, flags = parser.parse_known_args(arguments)

    def measure() -> list[Verdict]:
        check_locust()
        fetch_models(options)
        return run(
            options.out,
            seconds=options.seconds,
            rate=options.rate,
            generator=options.generator,
            encoder=options.encoder,
            flags=flags,
        )

    return print_judged(measure)


if __name__ == "__main__":
    sys.exit(main())
