"""Two Ray nodes under open-loop load while a retriever or a generator is added: it serves only what it is ready for.

    python -m loadtest.cluster.replica_added --of retriever --out retriever-added
    python -m loadtest.cluster.replica_added --of generator --time 90 --rate 2 --generator FOLDER --encoder FOLDER

Searches, direct answers and answers with passages arrive by Poisson. Beside them one client asks without a break. For
retrievers it writes a document and searches for it, twice by `min_version` and once without; for generators it asks an
adapter by name. After a third of the time `serve deploy` gets the same file with one more replica. Judged are:

| figure | holds where |
|---|---|
| answers | every request of the load was answered |
| reads | of a retriever: every write was found at its version, no search was behind what the new replica began with |
| adapter | of a generator: every answer came from the adapter that was asked, by its files' digest |
| added | the new replica answers, and was sent part of the requests |
| others | every process that served before still does |
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx

from engine.errors import SwitchyardError
from engine.models import resolve_model
from loadtest.__main__ import check_locust
from loadtest.cluster.askers import Asker, AsksAdapter, ReadsItsWrites
from loadtest.cluster.commands import command_parser, fetch_models, print_judged, serve_file
from loadtest.cluster.nodes import LocalCluster, local_cluster
from loadtest.cluster.under_load import Happened, answers_verdict, ingest_docs, under_load
from loadtest.generation.adapters import write_adapter
from loadtest.ports import free_port
from loadtest.verdicts import Verdict, write_verdicts

Component = Literal["retriever", "generator"]
_ADAPTER = "added"
_START_S = 180.0
# What a follower of a busy store has come to by then.
_SETTLE_S = 2.0
# How much the new replica is to be sent before it is judged.
_MIN_SENT = {"retriever": ("searches", 20), "generator": ("output_tokens", 20)}


def serve_config(
    component: Component, num_replicas: int, data: Path, port: int, generator: str, encoder: str
) -> dict[str, Any]:
    """Two nodes of one CPU with one or two replicas of the component.

    What stands under `args` stays: Ray Serve starts every process anew where that changes.
    """
    args: dict[str, Any] = {
        "profile": "cpu",
        "data": str(data),
        "gateway": {"num_cpus": 0},
        "retriever": {"num_cpus": 0.1, "model": encoder},
        "generator": {"num_cpus": 0.6, "threads": 1, "model": generator},
    }
    return serve_file(
        port,
        {**args, component: args[component] | {"num_replicas": 2}},
        deployments=[{"name": component.capitalize(), "num_replicas": num_replicas}],
    )


def run(
    component: Component,
    out: Path,
    *,
    seconds: float,
    rate: float,
    generator: str,
    encoder: str,
    flags: Sequence[str] = (),
) -> list[Verdict]:
    """Run it and write the report into `out`. `flags` go to the load test."""
    out.mkdir(parents=True, exist_ok=True)
    data, port = out.absolute() / "data", free_port()

    def deploy(cluster: LocalCluster, num_replicas: int) -> str:
        return cluster.deploy(serve_config(component, num_replicas, data, port, generator, encoder))

    with local_cluster() as cluster:
        cluster.start_head(num_cpus=1)
        cluster.add_node(num_cpus=1)
        if component == "generator":
            write_adapter(data / "adapters" / _ADAPTER, resolve_model(generator, kind="generator").path, seed=1)
        url = deploy(cluster, 1)
        ingest_docs(url)
        before = _processes(cluster)
        with _asking(component, url) as asker:

            def add(happened: Happened) -> None:
                time.sleep(seconds / 3)
                floor = asker.newest if isinstance(asker, ReadsItsWrites) else 0
                happened(f"{component} asked for")
                deploy(cluster, 2)
                time.sleep(_SETTLE_S)
                if isinstance(asker, ReadsItsWrites):
                    asker.floor = floor
                _wait_until(lambda: len(_each(url, component)) == 2, _START_S)
                happened(f"{component} answers")

            requests, _, _ = under_load(url, out, add, seconds=seconds, rate=rate, flags=flags)
            name, least = _MIN_SENT[component]
            with contextlib.suppress(SwitchyardError):  # the verdict says it
                _wait_until(lambda: min(own[name] for own in _each(url, component)) >= least, 30)
            each, after = _each(url, component), _processes(cluster)
    return [
        answers_verdict(requests, may_refuse=False),
        asked_verdict(component, asker),
        added_verdict(component, each),
        others_verdict(before, after),
    ]


@contextlib.contextmanager
def _asking(component: Component, url: str) -> Iterator[Asker]:
    asker: Asker = ReadsItsWrites(url)
    if component == "generator":
        loaded = httpx.post(f"{url}/v1/adapters", json={"name": _ADAPTER}, timeout=120, trust_env=False)
        if loaded.status_code != 200:
            raise SwitchyardError(f"the adapter was not loaded: {loaded.text[:300]}")
        asker = AsksAdapter(url, _ADAPTER, loaded.json()["digest"])
    asker.start()
    try:
        yield asker
    finally:
        asker.stop()


def asked_verdict(component: Component, asker: Asker) -> Verdict:
    """Whether what the client asked without a break was answered as it must be."""
    name = "reads" if component == "retriever" else "adapter"
    words = f"{asker.num_asked} asked, {len(asker.wrong)} wrong"
    if asker.wrong:
        words += f" (the first: {asker.wrong[0]})"
    return Verdict(name, asker.num_asked > 0 and not asker.wrong, float(len(asker.wrong)), "requests", words)


def added_verdict(component: Component, each: Sequence[dict[str, Any]]) -> Verdict:
    """Whether two replicas answer, and both had part of the work."""
    name, least = _MIN_SENT[component]
    sent = [int(own[name]) for own in each]
    what = name.replace("_", " ")
    words = f"{len(each)} replicas answer, with {' and '.join(map(str, sent)) or 'no'} {what}"
    holds = len(each) == 2 and min(sent) >= least
    return Verdict("added", holds, float(min(sent, default=0)), what, words)


def others_verdict(before: set[int], after: set[int]) -> Verdict:
    """Whether no process was started anew. Both are process ids of replicas."""
    gone = before - after
    words = f"{len(before) - len(gone)} of {len(before)} processes serve on, {len(after - before)} are new"
    return Verdict("others", bool(before) and not gone, float(len(gone)), "processes", words)


def _processes(cluster: LocalCluster) -> set[int]:
    """Process ids of all replicas that run."""
    deployments = ("Gateway", "Retriever", "Writer", "Generator", "Adapters")
    return {int(replica["pid"]) for name in deployments for replica in cluster.replicas(name)}


def _each(url: str, component: Component) -> list[dict[str, Any]]:
    """What is a replica's own, of all that answer."""
    try:
        status = httpx.get(f"{url}/readyz", timeout=20, trust_env=False).json()["components"][component]
    except (httpx.HTTPError, ValueError, KeyError):
        return []
    return list(status.get("each", ()))


def _wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise SwitchyardError(f"the second replica did not answer within {timeout_s:.0f} s")
        time.sleep(0.3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 where all figures hold."""
    parser = command_parser("replica_added", __doc__, rate=1.0)
    parser.add_argument("--of", choices=("retriever", "generator"), required=True, help="what one more is added of")
    parser.add_argument("--out", type=Path, default=Path("replica-added"), help="folder of the report (%(default)s)")
    parser.add_argument("--time", type=float, default=90.0, help="seconds of load (%(default)s)", metavar="S")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options, flags = parser.parse_known_args(arguments)

    def measure() -> list[Verdict]:
        check_locust()
        fetch_models(options)
        verdicts = run(
            options.of,
            options.out,
            seconds=options.time,
            rate=options.rate,
            generator=options.generator,
            encoder=options.encoder,
            flags=flags,
        )
        if options.json is not None:
            write_verdicts(options.json, verdicts, of=options.of, time=options.time, rate=options.rate)
        return verdicts

    return print_judged(measure)


if __name__ == "__main__":
    sys.exit(main())
