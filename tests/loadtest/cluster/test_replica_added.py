"""A replica that is added under load."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from json_server import listening

from engine.config import parse_config
from loadtest.cluster.askers import Asker, AsksAdapter, ReadsItsWrites
from loadtest.cluster.replica_added import (
    Component,
    added_verdict,
    asked_verdict,
    others_verdict,
    run,
    serve_config,
)


class Store:
    """Writes and searches; `lag` is how many versions its searches are behind."""

    def __init__(self, *, lag: int = 0) -> None:
        self.lag = lag
        self.texts: list[str] = []

    def __call__(self, method: str, _path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if method == "PUT":
            self.texts.append(body["text"])
            return 200, {"version": len(self.texts)}
        seen = self.texts[: len(self.texts) - self.lag]
        hits = [{"text": text} for text in seen if body["query"] in text]
        return 200, {"version": len(seen), "results": [hits]}


def asked(asker: Asker, num: int = 6) -> Asker:
    """It has asked `num` times and has ended."""
    asker.start()
    deadline = time.monotonic() + 30
    while asker.num_asked < num and not asker.wrong and time.monotonic() < deadline:
        time.sleep(0.01)
    asker.stop()
    return asker


def test_reader_that_finds_each_of_its_writes_finds_nothing_wrong():
    with listening(Store()) as url:
        reader = asked(ReadsItsWrites(url))
    assert reader.wrong == []
    verdict = asked_verdict("retriever", reader)
    assert (verdict.name, verdict.holds) == ("reads", True)


def test_search_that_is_behind_what_was_written_is_wrong():
    with listening(Store(lag=1)) as url:
        reader = asked(ReadsItsWrites(url))
    assert reader.wrong[0] == "version 0, min_version=1, floor 0"
    assert asked_verdict("retriever", reader).holds is False


def test_search_without_a_version_that_is_behind_the_floor_is_wrong():
    store = Store()

    def reply(method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        store.lag = 0 if body.get("min_version") else 1
        return store(method, path, body)

    with listening(reply) as url:
        reader = ReadsItsWrites(url)
        reader.floor = 1
        asked(reader)
    assert reader.wrong[0] == "version 0, min_version=0, floor 1"


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ((200, {"switchyard": {"versions": {"adapter": "abc"}}}), None),
        ((200, {"switchyard": {"versions": {"adapter": None}}}), "adapter None, not abc"),
        ((404, {"error": {"message": "adapter 'tone' is unknown"}}), "404: "),
        ((200, {}), "KeyError"),
    ],
    ids=["its own", "the base model's", "unknown", "none"],
)
def test_answer_that_is_not_the_adapters_own_is_wrong(answer, wrong):
    with listening(lambda *_: answer) as url:
        asker = asked(AsksAdapter(url, "tone", "abc"))
    assert (asker.wrong == []) if wrong is None else asker.wrong[0].startswith(wrong)


def test_replica_that_was_sent_nothing_was_not_added():
    assert added_verdict("retriever", [{"searches": 100}, {"searches": 40}]).holds is True
    assert added_verdict("retriever", [{"searches": 100}, {"searches": 0}]).holds is False
    assert added_verdict("generator", [{"output_tokens": 100}]).holds is False
    assert added_verdict("generator", []).holds is False


def test_process_that_was_started_anew_does_not_hold():
    assert others_verdict({1, 2}, {1, 2, 3}).holds is True
    assert others_verdict({1, 2}, {1, 3, 4}).holds is False


@pytest.mark.parametrize("component", ["retriever", "generator"])
def test_adding_a_replica_changes_nothing_that_starts_others_anew(component: Component, tmp_path: Path):
    (one,), (two,) = (serve_config(component, number, tmp_path, 8000, "g", "e")["applications"] for number in (1, 2))
    assert one.pop("deployments") == [{"name": component.capitalize(), "num_replicas": 1}]
    assert two.pop("deployments") == [{"name": component.capitalize(), "num_replicas": 2}]
    assert one == two
    config = parse_config(one["args"], "test")
    assert getattr(config, component).num_replicas == 2


@pytest.mark.chaos
@pytest.mark.timeout(500)
@pytest.mark.parametrize("component", ["retriever", "generator"])
def test_two_node_cluster_sends_an_added_replica_nothing_that_it_is_not_ready_for(
    component: Component, tmp_path: Path, tiny_sources
):
    verdicts = run(
        component,
        tmp_path,
        seconds=60,
        rate=2,
        **tiny_sources,
        flags=["--max-tokens", "8", "--max-lag-ms", "10000"],
    )
    assert all(each.holds for each in verdicts), verdicts
    assert (tmp_path / "report.html").is_file()
