"""Two Ray nodes on this machine under open-loop load, one of them killed in the middle and started again.

    python -m loadtest.cluster.node_killed --out node-killed
    python -m loadtest.cluster.node_killed --seconds 60 --rate 1 --generator FOLDER --encoder FOLDER

Searches, direct answers and answers with passages arrive by Poisson while documents are written one after another.
Judged are three figures:

| figure | holds where |
|---|---|
| answers | every request was answered, or refused by 503 with Retry-After or an error that names what is unavailable |
| full service | 30 s after the kill or earlier, every request is answered again, to the end |
| writes | every document whose write was acknowledged is there in the end, as it was sent |
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console

from engine.config import APP_IMPORT_PATH, EngineConfig
from engine.errors import SwitchyardError
from engine.models import resolve_model
from loadtest.__main__ import check_locust, command
from loadtest.cluster.nodes import LocalCluster, local_cluster
from loadtest.environment import REPOSITORY
from loadtest.open_loop.report import make_report
from loadtest.open_loop.request_log import REQUESTS_FILE, Request, read_requests
from loadtest.open_loop.run import Happening, read_run
from loadtest.ports import free_port
from loadtest.server import SWITCHYARD
from loadtest.verdicts import Verdict, print_verdicts

MAX_OUTAGE_S = 30.0
# The machine comes back, as under an operator that replaces it.
_BACK_AFTER_S = 10.0
_DOCUMENTS = "/v1/collections/written/documents"
_WRITE_EVERY_S = 0.25


class Writer(threading.Thread):
    """Writes one document after another, and keeps those that were acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__(name="writer", daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.num_refused = 0
        self._url = url
        self._stopping = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as http:
            for number in itertools.count():
                if self._stopping.wait(_WRITE_EVERY_S):
                    return
                self._put(http, f"log/{number}.md", f"Entry {number}: the node wrote revision {number * 7919 % 1000}.")

    def stop(self) -> None:
        """End after the write that is on its way."""
        self._stopping.set()
        self.join(timeout=90)

    def _put(self, http: httpx.Client, id: str, text: str) -> None:
        try:
            answer = http.put(f"{_DOCUMENTS}/{quote(id)}", json={"text": text})
        except httpx.TransportError:
            self.num_refused += 1
            return
        if answer.status_code == 200:
            self.acknowledged[id] = text
        else:
            self.num_refused += 1


def serve_config(data: Path, port: int, generator: str, encoder: str) -> dict[str, Any]:
    """A generator on each of two nodes of one CPU, two gateways, one retriever."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": "switchyard",
                "route_prefix": "/",
                "import_path": APP_IMPORT_PATH,
                "args": {
                    "profile": "cpu",
                    "data": str(data),
                    "gateway": {"num_replicas": 2, "num_cpus": 0},
                    "retriever": {"num_cpus": 0.1, "model": encoder},
                    "generator": {"num_cpus": 0.8, "num_replicas": 2, "threads": 1, "model": generator},
                },
            }
        ],
    }


def run(out: Path, *, seconds: float, rate: float, generator: str, encoder: str, flags: Sequence[str]) -> list[Verdict]:
    """Run it and write the report into `out`. `flags` go to the load test."""
    out.mkdir(parents=True, exist_ok=True)
    with local_cluster() as cluster:
        cluster.start_head(num_cpus=1)
        doomed = cluster.add_node(num_cpus=1)
        url = cluster.deploy(serve_config(out.absolute() / "data", free_port(), generator, encoder))
        ingest = [str(SWITCHYARD), "ingest", str(REPOSITORY / "docs"), "--url", url, "--json"]
        subprocess.run(ingest, check=True, capture_output=True)
        writer = Writer(url)
        writer.start()
        load = command(url, ["--rate", f"{rate:g}", "-t", f"{seconds:g}s", "--out", str(out), *flags])
        client = subprocess.Popen(load, cwd=REPOSITORY)
        try:
            happened = _kill_and_start(cluster, doomed.kill, seconds / 2)
            client.wait(timeout=seconds + 180)
        finally:
            if client.poll() is None:
                client.kill()
                client.wait()
            writer.stop()
        lost = _lost(url, writer.acknowledged)
    began = read_run(out).started_unix
    happenings = [Happening(unix_s - began, label) for unix_s, label in happened]
    make_report(out, happenings)
    return judge(read_requests(out / REQUESTS_FILE), happenings[0].at_s, seconds, writer, lost)


def _kill_and_start(cluster: LocalCluster, kill: Any, after_s: float) -> list[tuple[float, str]]:
    time.sleep(after_s)
    kill()
    happened = [(time.time(), "node killed")]
    time.sleep(_BACK_AFTER_S)
    cluster.add_node(num_cpus=1)
    return [*happened, (time.time(), "node back")]


def _lost(url: str, acknowledged: dict[str, str]) -> list[str]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        found = {id: http.get(f"{_DOCUMENTS}/{quote(id)}") for id in acknowledged}
    return [
        id for id, answer in found.items() if answer.status_code != 200 or answer.json()["text"] != acknowledged[id]
    ]


def judge(
    requests: Sequence[Request], killed_s: float, seconds: float, writer: Writer, lost: Sequence[str]
) -> list[Verdict]:
    """The three figures, in the order of the module's table."""
    unclear = [each for each in requests if each.ending not in ("complete", "rejected") and not _is_clear(each)]
    refused = [each for each in requests if each.ending != "complete"]
    words = (
        f"{len(requests) - len(refused)} of {len(requests)} answered, {len(refused)} refused, {len(unclear)} unclear"
    )
    answers = Verdict("answers", not unclear, float(len(unclear)), "requests", words)
    late = [each.intended_s - killed_s for each in refused]
    outage_s = max(late, default=0.0)
    watched_s = seconds - killed_s
    words = f"the last request that was not answered came {max(outage_s, 0):.1f} s after the kill, of {watched_s:.0f} s"
    service = Verdict("full service", outage_s < MAX_OUTAGE_S < watched_s, outage_s, "s", words)
    words = f"{len(writer.acknowledged)} acknowledged, {len(lost)} of them lost, {writer.num_refused} refused"
    writes = Verdict("writes", bool(writer.acknowledged) and not lost, float(len(lost)), "documents", words)
    return [answers, service, writes]


def _is_clear(request: Request) -> bool:
    """Whether the client was told by the server what went wrong."""
    return request.ending == "failed" and request.status is not None and "unavailable" in (request.error or "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 where all three figures hold."""
    lines = (__doc__ or "").splitlines()
    defaults = EngineConfig()
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.cluster.node_killed",
        description=lines[0],
        epilog="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("node-killed"), help="folder of the report (%(default)s)")
    parser.add_argument("--seconds", type=float, default=80.0, help="of load; the kill comes in the middle")
    parser.add_argument("--rate", type=float, default=1.0, help="requests/s (%(default)s)")
    parser.add_argument("--generator", default=defaults.generator.model, help="model source (%(default)s)")
    parser.add_argument("--encoder", default=defaults.retriever.model, help="model source (%(default)s)")
    options, flags = parser.parse_known_args(arguments)
    try:
        check_locust()
        resolve_model(options.generator, kind="generator", show_progress=True)
        resolve_model(options.encoder, kind="encoder", show_progress=True)
        verdicts = run(
            options.out,
            seconds=options.seconds,
            rate=options.rate,
            generator=options.generator,
            encoder=options.encoder,
            flags=flags,
        )
    except SwitchyardError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    return print_verdicts(verdicts, Console())


if __name__ == "__main__":
    sys.exit(main())
