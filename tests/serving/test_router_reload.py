"""A learned router on real Ray, in the gateway's process and in its own: taken up, replaced and refused under load."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from made_router import artefact, learned
from running_server import Server, start_server

from engine.routing.artefact import ARRAYS_FILE, JSON_FILE, write_artefact
from engine.routing.keys import keys_from_json

pytestmark = pytest.mark.slow
NOTICED_WITHIN_S = 20.0


@pytest.fixture(params=["inprocess", "deployment"])
def routed(request, tmp_path, tiny_models):
    options = ["--set", f"router.placement={request.param}"]
    options += ["--set", "gateway.num_replicas=2"] if request.param == "deployment" else []
    server = start_server(tmp_path / "server", *tiny_models, *options)
    for name in ("volumes", "machines"):
        url = f"{server.url}/v1/collections/default/documents/{name}.md"
        assert httpx.put(url, json={"text": f"All about {name}."}, timeout=60).status_code == 200
    yield server
    assert not server.stop()


def ask(server: Server, text: str) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def router_of(server: Server) -> dict:
    response = httpx.get(f"{server.url}/readyz", timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["components"]["router"]


def wait_for(server: Server, wanted) -> dict:
    deadline = time.monotonic() + NOTICED_WITHIN_S
    while not wanted(found := router_of(server)):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_router_is_taken_up_replaced_and_refused_while_no_request_fails(routed, tmp_path):
    keys = httpx.post(f"{routed.url}/v1/route", json={"input": "x"}, timeout=60).json()["keys"]
    made = artefact(keys=keys_from_json(keys), signals=("lexical.tokens", "search.best"), learned=learned(mean=6.0))
    assert router_of(routed)["name"] == "score-rule-1"
    failed: list[str] = []
    is_over = threading.Event()

    def go_on_asking() -> None:
        while not is_over.is_set():
            answer = ask(routed, "how do volumes work")
            if answer.status_code != 200:
                failed.append(answer.text)

    asking = threading.Thread(target=go_on_asking)
    asking.start()
    try:
        folder = routed.data / "router"
        names = []
        for day in ("01", "02"):
            written = write_artefact(replace(made, created=f"2026-01-{day}T00:00:00+00:00"), tmp_path / day)
            if folder.exists():
                folder.rename(tmp_path / "old")
            (tmp_path / day).rename(folder)
            found = wait_for(routed, lambda each, name=written.name: each["name"] == name)
            assert (found["is_learned"], found["warnings"]) == (True, [])
            names.append(written.name)
        _damage(folder / ARRAYS_FILE)
        (warning,) = wait_for(routed, lambda each: each["warnings"])["warnings"]
        assert ARRAYS_FILE in warning and router_of(routed)["name"] == names[-1] != names[0]
    finally:
        is_over.set()
        asking.join()
    assert failed == []
    time.sleep(3)  # the gateway of a router of its own asks what it needs every two seconds
    for text, route in (("how do volumes work", "direct"), ("please tell me how do volumes work here", "rag")):
        outcome = ask(routed, text).json()["switchyard"]
        assert (outcome["route"], outcome["versions"]["router"]) == (route, names[-1])
    # Whichever of the gateways gave it, and whichever is asked.
    for response in [ask(routed, "how do volumes work").json()["id"] for _ in range(6)]:
        rated = httpx.post(f"{routed.url}/v1/feedback", json={"id": response, "label": "good"}, timeout=60)
        assert rated.status_code == 200, rated.text
    assert len(httpx.get(f"{routed.url}/v1/feedback", timeout=60).json()["feedback"]) == 6
    (folder / JSON_FILE).unlink()
    (folder / ARRAYS_FILE).unlink()
    assert wait_for(routed, lambda each: not each["is_learned"])["name"] == "score-rule-1"


def _damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
