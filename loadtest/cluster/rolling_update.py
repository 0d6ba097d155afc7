"""A service that is updated under open-loop load: adapters, router and configuration, while requests go on.

    python -m loadtest.cluster.rolling_update --json rolling-update.json
    python -m loadtest.cluster.rolling_update --nodes 2 --rate 2 --generator FOLDER --encoder FOLDER

Streamed and whole answers, direct and with passages, of the base model and of adapters arrive by Poisson. Meanwhile a
new version of an adapter is loaded under its name, another adapter is unloaded, the router is replaced, and the service
is deployed again with another configuration: more generators, then as few as before. Judged are:

| figure | holds where |
|---|---|
| answers | every request got its whole answer; none was refused, cut off or degraded |
| running streams | streams that an update met were not cut: each went on to its end |
| adapter versions | each answer has the tokens of the version that it names, and of the new one after the load |
| unloaded | the adapter answered until it was unloaded, and is unknown since |
| router | answers name the new router, without a redeploy |
| configuration | every process was replaced, and as many generators run as the new configuration says |
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from engine.errors import SwitchyardError
from engine.models import resolve_model
from engine.routing.artefact import Artefact, Objective, write_artefact
from engine.routing.keys import keys_from_json
from loadtest.cluster.commands import command_parser, fetch_models, print_judged, serve_file
from loadtest.cluster.nodes import LocalCluster, local_cluster
from loadtest.cluster.update_load import Answer, Kind, UpdateLoad, ask
from loadtest.generation.adapters import write_adapter
from loadtest.ports import free_port
from loadtest.verdicts import Verdict, write_verdicts

BASE, TONE, NEWS = "base", "tone", "news"
DEPLOYMENTS = ("Gateway", "Retriever", "Generator")
KINDS = (
    *(Kind(BASE, route, is_stream) for route in ("direct", "rag") for is_stream in (True, False)),
    *(Kind(TONE, "direct", is_stream) for is_stream in (True, False)),
    Kind("auto", "auto", True),
    Kind(NEWS, "direct", False),
)
_STEADY_S = 4.0
_UPDATED_WITHIN_S = 240.0
_ROUTER_WITHIN_S = 30.0
_ANSWERED_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Step:
    """One update: from when it was asked for until it was done, by `time.time()`."""

    name: str
    begun_s: float
    end_s: float


@dataclass
class Updated:
    """What a run did and saw. `expected` are an adapter's texts by its digest, asked for while nothing else went on."""

    steps: list[Step] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    router: str = ""
    replaced: dict[str, bool] = field(default_factory=dict)
    num_generators: list[int] = field(default_factory=list)

    def step(self, name: str) -> Step:
        """The update of that name."""
        return next(each for each in self.steps if each.name == name)


def serve_config(data: Path, port: int, generator: str, encoder: str, *, num_generators: int) -> dict[str, Any]:
    """The service in its first configuration (one generator) and its second."""
    args = {
        "profile": "cpu",
        "data": str(data),
        "gateway": {"num_cpus": 0.1, "max_ongoing_requests": 128 * num_generators},
        "retriever": {"num_cpus": 0.1, "model": encoder},
        "generator": {
            "num_cpus": 0.2,
            "num_replicas": num_generators,
            "threads": 1,
            "model": generator,
            "name": BASE,
            # So that an answer does not depend on what else is in its batch.
            "dtype": "float32",
            "adapter_paths": [str(data.parent / "trained")],
        },
    }
    return serve_file(port, args)


class Updates:
    """The updates, one after another, of a service that runs on a cluster."""

    def __init__(self, cluster: LocalCluster, folder: Path, generator: str, encoder: str) -> None:
        self._cluster = cluster
        self._data = folder / "data"
        self._trained = folder / "trained"
        self._models = generator, encoder
        self._port = free_port()
        self.seen = Updated()
        self.url = ""

    def start(self) -> None:
        """Deploy the first configuration, with documents and two adapters."""
        model = resolve_model(self._models[0], kind="generator").path
        for seed, name in enumerate(("tone-1", "tone-2", "news-1")):
            # Strong enough to change the tokens.
            write_adapter(self._trained / name, model, seed=seed, std=0.2)
        self.url = self._cluster.deploy(self._config(1))
        with self._http() as http:
            for name in ("volumes", "regions", "machines"):
                text = {"text": f"All about {name}: {name} work in every region."}
                http.put(f"/v1/collections/default/documents/{name}.md", json=text).raise_for_status()
        self.load_adapter(TONE, "tone-1")
        self.load_adapter(NEWS, "news-1")

    def load_adapter(self, name: str, folder: str) -> None:
        """Load an adapter from the folder of trained ones."""
        with self._http() as http:
            answer = http.post("/v1/adapters", json={"name": name, "path": str(self._trained / folder)})
            _check(answer)
        if name == TONE:
            self.seen.versions.append(str(answer.json()["digest"]))

    def unload_adapter(self) -> None:
        """Unload the adapter that is not replaced."""
        with self._http() as http:
            _check(http.delete(f"/v1/adapters/{NEWS}"))

    def replace_router(self) -> None:
        """Write a router beside the data, and wait until it decides."""
        with self._http() as http:
            keys = keys_from_json(_check(http.post("/v1/route", json={"input": "x"})).json()["keys"])
            self.seen.router = write_artefact(_router(keys), self._data / "router").name
            _wait(lambda: self._router_is(http, self.seen.router), _ROUTER_WITHIN_S, "the router was not taken up")

    def deploy(self, num_generators: int) -> None:
        """Deploy another configuration, and wait until every process of the old one is gone."""
        before = {name: self._ids(name) for name in DEPLOYMENTS}
        self._cluster.deploy(self._config(num_generators))

        def is_over() -> bool:
            return all(not before[name] & self._ids(name, every=True) for name in DEPLOYMENTS)

        _wait(is_over, _UPDATED_WITHIN_S, f"the update is not over: {self._cluster.status()['applications']}")
        for name in DEPLOYMENTS:
            is_replaced = bool(self._ids(name)) and self.seen.replaced.get(name, True)
            self.seen.replaced[name] = is_replaced
        self.seen.num_generators.append(len(self._ids("Generator")))

    def note(self, max_tokens: int) -> None:
        """Ask the adapter while nothing else goes on: what it says now is what its version says."""

        async def once() -> Answer:
            async with httpx.AsyncClient(base_url=self.url, timeout=120, trust_env=False) as http:
                return await ask(http, Kind(TONE, "direct", False), max_tokens, time.time())

        answer = asyncio.run(once())
        if answer.error is not None or answer.adapter is None:
            raise SwitchyardError(f"the adapter does not answer: {answer.error}")
        self.seen.expected[answer.adapter] = answer.text

    def timed(self, name: str, load: UpdateLoad, update: Callable[[], None]) -> None:
        """Do one of the above while a stream is on its way, and let the load go on for a moment."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        _wait(lambda: load.num_streams > 0, _ANSWERED_WITHIN_S, "no stream was on its way", every_s=0.005)
        begun_s = time.time()
        update()
        self.seen.steps.append(Step(name, begun_s, time.time()))
        time.sleep(_STEADY_S)

    def _config(self, num_generators: int) -> dict[str, Any]:
        return serve_config(self._data, self._port, *self._models, num_generators=num_generators)

    def _ids(self, deployment: str, *, every: bool = False) -> set[str]:
        """Of the running replicas, or of every one that there is."""
        return {each["replica_id"] for each in self._cluster.replicas(deployment, every=every)}

    def _router_is(self, http: httpx.Client, name: str) -> bool:
        answer = http.get("/readyz")
        return answer.status_code == 200 and answer.json()["components"]["router"]["name"] == name

    def _http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)


def run(
    folder: Path, *, nodes: int, rate: float, max_tokens: int, generator: str, encoder: str
) -> tuple[Updated, list[Verdict]]:
    """Run all updates once. `folder` takes the data."""
    with local_cluster() as cluster:
        cluster.start_head(num_cpus=2)
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=2)
        updates = Updates(cluster, folder.absolute(), generator, encoder)
        updates.start()
        updates.note(max_tokens)
        load = UpdateLoad(updates.url, KINDS, rate=rate, max_tokens=max_tokens)
        load.start()
        try:
            # Or nothing would show what the version before said under load.
            _wait(lambda: _has_answered(load, TONE), _ANSWERED_WITHIN_S, "the adapter did not answer under load")
            updates.timed("adapter replaced", load, lambda: updates.load_adapter(TONE, "tone-2"))
            updates.timed("adapter unloaded", load, updates.unload_adapter)
            updates.timed("router replaced", load, updates.replace_router)
            updates.timed("generators 1 -> 2", load, lambda: updates.deploy(2))
            updates.timed("generators 2 -> 1", load, lambda: updates.deploy(1))
        finally:
            updates.seen.answers = load.stop()
        updates.note(max_tokens)
    return updates.seen, judge(updates.seen)


def judge(seen: Updated) -> list[Verdict]:
    """The figures, in the order of the module's table."""
    unloading = seen.step("adapter unloaded")
    known = [each for each in seen.answers if each.kind.model != NEWS or each.begun_s < unloading.begun_s]
    failed = [each for each in known if each.error is not None or each.is_degraded]
    words = f"{len(known) - len(failed)} of {len(known)} answered"
    if failed:
        words += f"; the first that was not: {failed[0].kind.name}: {failed[0].error or 'degraded'}"
    answers = Verdict("answers", bool(known) and not failed, float(len(failed)), "requests", words)

    met = [each for each in known if each.kind.is_stream and any(_meets(each, step) for step in seen.steps)]
    cut = [each for each in met if each.error is not None]
    longest_s = max((each.latency_s for each in met), default=0.0)
    words = f"{len(met) - len(cut)} of {len(met)} that an update met went on to their end, up to {longest_s:.1f} s long"
    streams = Verdict("running streams", bool(met) and not cut, float(len(cut)), "streams", words)

    loaded = seen.step("adapter replaced")
    tones = [each for each in known if each.kind.model == TONE and each.error is None]
    mixed = [each for each in tones if seen.expected.get(each.adapter or "") != each.text]
    stale = [each for each in tones if each.begun_s > loaded.end_s and each.adapter != seen.versions[-1]]
    counts = [sum(each.adapter == digest for each in tones) for digest in seen.versions]
    words = f"{' and '.join(map(str, counts))} answers of the versions, {len(mixed)} mixed, {len(stale)} of the old one"
    is_right = not mixed and not stale and min(counts, default=0) > 0 and len(set(seen.expected.values())) > 1
    versions = Verdict("adapter versions", is_right, float(len(mixed) + len(stale)), "answers", words)

    late = [each for each in seen.answers if each.kind.model == NEWS and each.begun_s > unloading.end_s]
    odd = [each for each in late if each.status != 404]
    words = f"{len(late) - len(odd)} of {len(late)} requests since were told that it is unknown"
    unloaded = Verdict("unloaded", not odd, float(len(odd)), "requests", words)

    since = seen.step("router replaced").end_s
    routed = [each for each in known if each.kind.model == "auto" and each.begun_s > since and each.error is None]
    old = [each for each in routed if each.router != seen.router]
    words = f"{len(routed) - len(old)} of {len(routed)} answers since name {seen.router}"
    router = Verdict("router", bool(routed) and not old, float(len(old)), "answers", words)

    is_replaced = all(seen.replaced.values()) and seen.num_generators == [2, 1]
    words = f"{', '.join(map(str, seen.num_generators))} generators; every earlier process is gone"
    configuration = Verdict("configuration", is_replaced, float(not is_replaced), "deployments", words)
    return [answers, streams, versions, unloaded, router, configuration]


def _has_answered(load: UpdateLoad, model: str) -> bool:
    return any(each.kind.model == model and each.error is None for each in list(load.answers))


def _meets(answer: Answer, step: Step) -> bool:
    """Whether a request was on its way when an update was asked for."""
    return answer.begun_s < step.begun_s < answer.end_s


def rows(seen: Updated) -> list[dict[str, Any]]:
    """For each step and the time between them: how long it took, and what became of the requests that came in it."""
    ends = [0.0, *(each.end_s for each in seen.steps), float("inf")]
    found = []
    for step in seen.steps:
        during = [each for each in seen.answers if step.begun_s <= each.begun_s < step.end_s]
        found.append(_row(step.name, step.end_s - step.begun_s, during))
    quiet = [
        each
        for each in seen.answers
        if not any(step.begun_s <= each.begun_s < step.end_s for step in seen.steps) and each.begun_s < ends[-1]
    ]
    return [*found, _row("between them", None, quiet)]


def _row(name: str, took_s: float | None, answers: Sequence[Answer]) -> dict[str, Any]:
    latencies = [each.latency_s for each in answers if each.error is None]
    direct = [each.latency_s for each in answers if each.error is None and each.kind.route == "direct"]
    return {
        "update": name,
        "took_s": None if took_s is None else round(took_s, 2),
        "requests": len(answers),
        "failed": sum(each.error is not None and each.status != 404 for each in answers),
        "degraded": sum(each.is_degraded for each in answers),
        "median_s": round(median(latencies), 3) if latencies else None,
        "slowest_direct_s": round(max(direct), 3) if direct else None,
        "slowest_s": round(max(latencies), 3) if latencies else None,
    }


def _router(keys: Any) -> Artefact:
    """One that always takes passages."""
    return Artefact(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        keys=keys,
        arms=("base", "base+context"),
        ranked=("base+context", "base"),
        rates=(0.5, 0.6),
        objective=Objective(),
        headline="Not learned: made to be replaced.",
        reasons=("because",),
        num_questions=1,
        signals=(),
        learned=None,
    )


def _check(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        raise SwitchyardError(f"{answer.request.method} {answer.request.url.path}: {answer.text[:300]}")
    return answer


def _wait(holds: Callable[[], bool], timeout_s: float, why: str, every_s: float = 0.3) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise SwitchyardError(f"{why} within {timeout_s:g} s")
        time.sleep(every_s)


def _print(console: Console, seen: Updated) -> None:
    table = Table("update", "took", "requests", "failed", "degraded", "median", "slowest direct", "slowest")
    for row in rows(seen):
        took, *waits = ("" if row[key] is None else f"{row[key]:.2f} s" for key in _SECONDS)
        table.add_row(row["update"], took, *(str(row[key]) for key in ("requests", "failed", "degraded")), *waits)
    console.print(table)


_SECONDS = ("took_s", "median_s", "slowest_direct_s", "slowest_s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 where all figures hold."""
    parser = command_parser("rolling_update", __doc__, rate=1.0)
    parser.add_argument("--data", type=Path, default=Path("rolling-update"), help="folder of the state (%(default)s)")
    parser.add_argument("--json", type=Path, help="file that takes the figures", metavar="FILE")
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2), help="Ray nodes (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of each answer (%(default)s)")
    options = parser.parse_args(arguments)
    # So that the nodes end with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def measure() -> list[Verdict]:
        fetch_models(options)
        seen, verdicts = run(
            options.data,
            nodes=options.nodes,
            rate=options.rate,
            max_tokens=options.max_tokens,
            generator=options.generator,
            encoder=options.encoder,
        )
        if options.json is not None:
            write_verdicts(options.json, verdicts, updates=rows(seen))
        _print(Console(), seen)
        return verdicts

    return print_judged(measure)


if __name__ == "__main__":
    sys.exit(main())
