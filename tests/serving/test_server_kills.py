"""A server that is killed with everything it started keeps each acknowledged write, and no part of another."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from running_server import SWITCHYARD, Server, is_alive, start_server

NUM_KILLS = 5
COLLECTION = "default"
DOCUMENTS = f"/v1/collections/{COLLECTION}/documents"
PER_BATCH = 32  # of `switchyard ingest`
NUM_SITE, NUM_BATCH, NUM_SINGLE = (
    50,
    30,
    5,
)  # with the pages that a sync renames below 100, the most that a search gives
GONE_S = 60

# Changed documents by id, None for a deletion: what one write makes true at once.
Part = Mapping[str, str | None]


@dataclass(frozen=True)
class Step:
    """Writes in order, each whole or absent; acknowledged together."""

    kind: str
    parts: tuple[Part, ...]


class Steps:
    """Endless writes of all kinds; the site is a folder that `ingest --sync` follows."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.site = folder / "site"
        self._rng = rng
        self._round = 0

    def next(self, stored: Mapping[str, str]) -> Step:
        """A step that changes every document it names."""
        self._round += 1
        kind = self._rng.choice(("batch", "sync", "single", "delete"))
        if kind == "batch":
            ids = [f"batch/{number}.md" for number in self._rng.sample(range(NUM_BATCH), 12)]
            return Step(kind, ({id: self._text(id) for id in ids},))
        if kind == "single":
            id = f"single/{self._rng.randrange(NUM_SINGLE)}.md"
            return Step(kind, ({id: self._text(id)},))
        if kind == "delete":
            ids = [id for id in stored if id.startswith("batch/")]
            return Step(kind, (dict.fromkeys(self._rng.sample(ids, len(ids) // 3)),))
        return Step(kind, tuple(self._renew_site(stored)))

    def _renew_site(self, stored: Mapping[str, str]) -> Iterator[Part]:
        """Rewrite the folder, a few of its names being new; the parts are the batches that bring it to the server."""
        first = 5 * (self._round % 3)
        pages = {f"{number:03}.md": self._text(f"site/{number:03}.md") for number in range(first, first + NUM_SITE)}
        self.site.mkdir(exist_ok=True)
        for old in self.site.iterdir():
            old.unlink()
        for name, text in pages.items():
            (self.site / name).write_text(text)
        changes: dict[str, str | None] = {f"site/{name}": text for name, text in pages.items()}
        changes |= dict.fromkeys(sorted(id for id in stored if id.startswith("site/") and id not in changes))
        items = list(changes.items())
        for start in range(0, len(items), PER_BATCH):
            yield dict(items[start : start + PER_BATCH])

    def _text(self, id: str) -> str:
        return f"# Page {id}\n\nEvery page tells its revision{self._round}."


def send(url: str, step: Step, site: Path) -> bool:
    """Whether the server acknowledged the step."""
    if step.kind == "sync":
        command = [SWITCHYARD, "ingest", site, "--source", "site", "--sync", "--json", "--url", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode == 0 and json.loads(done.stdout)["failed"] == 0
    (part,) = step.parts
    try:
        if step.kind == "single":
            ((id, text),) = part.items()
            answer = httpx.put(f"{url}{DOCUMENTS}/{quote(id)}", json={"text": text}, timeout=60)
            return answer.status_code == 200
        lines = [{"id": id, "delete": True} if text is None else {"id": id, "text": text} for id, text in part.items()]
        if not lines:
            return True
        body = "\n".join(json.dumps(line) for line in lines)
        headers = {"Content-Type": "application/x-ndjson"}
        answer = httpx.post(f"{url}{DOCUMENTS}:batch", content=body, headers=headers, timeout=60)
    except httpx.TransportError:
        return False
    return answer.status_code == 200 and all(result["status"] != "failed" for result in answer.json()["results"])


def apply(stored: Mapping[str, str], part: Part) -> dict[str, str]:
    merged = {**stored, **part}
    return {id: text for id, text in merged.items() if text is not None}


class Writer(threading.Thread):
    """Takes one step after another until one is not acknowledged, which is then `pending`."""

    def __init__(self, url: str, steps: Steps, stored: Mapping[str, str]) -> None:
        super().__init__()
        self._url = url
        self._steps = steps
        self.stored = dict(stored)
        self.pending: Step | None = None
        self.kinds: set[str] = set()

    def run(self) -> None:
        while True:
            step = self.pending = self._steps.next(self.stored)
            if not send(self._url, step, self._steps.site):
                return
            for part in step.parts:
                self.stored = apply(self.stored, part)
            self.pending = None
            self.kinds.add(step.kind)


def kill(server: Server) -> None:
    """End the group of the server's processes without a word, and wait until all that it started has gone."""
    started = server.processes()
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(timeout=10)
    deadline = time.monotonic() + GONE_S
    while left := [process for process in started if is_alive(process)]:
        if time.monotonic() > deadline:
            names = [" ".join(process.cmdline())[:120] for process in left]
            for process in left:
                process.kill()
            pytest.fail(f"still there {GONE_S} s after the kill: {names}")
        time.sleep(0.2)


def read_all(http: httpx.Client) -> dict[str, str]:
    rows = http.get(DOCUMENTS, params={"limit": 1000}).json().get("documents", [])
    return {row["id"]: http.get(f"{DOCUMENTS}/{quote(row['id'])}").json()["text"] for row in rows}


def whole_states(acknowledged: Mapping[str, str], pending: Step | None) -> list[dict[str, str]]:
    """What may be stored: all that was acknowledged, and of the step that was not its first parts, however many."""
    states = [dict(acknowledged)]
    for part in pending.parts if pending else ():
        states.append(apply(states[-1], part))
    return states


def check_whole(url: str, acknowledged: Mapping[str, str], pending: Step | None) -> dict[str, str]:
    """What the server holds, once it is sure that this is right and that both legs find exactly this."""
    with httpx.Client(base_url=url, timeout=60) as http:
        found = read_all(http)
        allowed = whole_states(acknowledged, pending)
        assert found in allowed, difference(found, allowed)
        if not found:
            return found
        version = http.get(f"/v1/collections/{COLLECTION}").json()["version"]
        for mode in ("dense", "lexical", "hybrid"):
            answer = http.post("/v1/search", json={"query": "every page tells its page", "k": 100, "mode": mode}).json()
            assert answer["version"] == version
            hits = {hit["document"]: hit for hit in answer["results"][0]}
            assert hits.keys() == found.keys(), (mode, hits.keys() ^ found.keys())
            for id, hit in hits.items():
                assert hit["text"] == found[id][hit["start"] : hit["end"]]
        # Words of one revision: the lexical index holds the texts of this version and of no other.
        for revision in {text.rpartition("revision")[2].rstrip(".\n") for text in found.values()}:
            word = f"revision{revision}"
            answer = http.post("/v1/search", json={"query": word, "k": 100, "mode": "lexical"}).json()
            assert {hit["document"] for hit in answer["results"][0]} == {
                id for id, text in found.items() if f"{word}." in text
            }
    return found


def difference(found: Mapping[str, str], allowed: list[dict[str, str]]) -> str:
    return "; ".join(
        f"after {number} parts: {sorted(id for id in found.keys() | one.keys() if found.get(id) != one.get(id))[:8]}"
        for number, one in enumerate(allowed)
    )


def check_snapshot(data: Path, file: Path, states: list[dict[str, str]]) -> None:
    """A folder whose server was killed can be saved at once, and all of it is sound."""
    file.unlink(missing_ok=True)
    saved = subprocess.run(
        [SWITCHYARD, "snapshot", "save", COLLECTION, file, "--data", data, "--json"], capture_output=True, text=True
    )
    assert saved.returncode == 0, saved.stderr
    verified = subprocess.run([SWITCHYARD, "snapshot", "verify", file], capture_output=True, text=True)
    assert verified.returncode == 0, verified.stderr
    assert json.loads(saved.stdout)["documents"] in {len(state) for state in states}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_killed_server_keeps_each_acknowledged_write_and_no_part_of_another(tmp_path: Path, tiny_models):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps = Steps(tmp_path, rng)
    stored: dict[str, str] = {}
    pending: Step | None = None
    kinds: set[str] = set()
    file = tmp_path / "killed.snapshot"
    for number in range(NUM_KILLS + 1):
        server = start_server(tmp_path, *tiny_models)
        try:
            stored = check_whole(server.url, stored, pending)
            if number == NUM_KILLS:
                break
            writer = Writer(server.url, steps, stored)
            writer.start()
            time.sleep(rng.uniform(1, 5))
        finally:
            if number == NUM_KILLS:
                assert not server.stop()
            else:
                kill(server)
        writer.join(timeout=130)
        stored, pending = writer.stored, writer.pending
        kinds |= writer.kinds
        print(f"kill {number + 1}: acknowledged {sorted(writer.kinds)}, pending {pending and pending.kind}")
        if stored:
            check_snapshot(server.data, file, whole_states(stored, pending))
    assert kinds, "no write was acknowledged before a kill"
