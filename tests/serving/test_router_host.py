"""Who holds the router: what it asks, when, and what it does where nobody answers. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest
from made_router import artefact, learned

from engine.config import EngineConfig
from engine.errors import ComponentUnavailable, InvalidAdapter, SwitchyardError
from engine.evaluation.shared_router import SharedRouter
from engine.generation.adapters.inputs import TrainingInputs
from engine.generation.adapters.status import ServedAdapter
from engine.retrieval.store.shared_files import SharedFiles
from engine.routing.artefact import write_artefact
from engine.routing.live import Surroundings
from engine.serving.router_host import RouterHost, Served
from engine.values import IndexInfo, RouteRequest

INDEX = IndexInfo("encoder-1", "chunking-1")
TONE, NEWS = ServedAdapter("tone", "t1", None), ServedAdapter("news", "n1", "classify")
INPUTS = TrainingInputs(np.eye(2, dtype=np.float16), "encoder", "encoder-1")
LONG = RouteRequest("please tell me how do volumes work here", "default", can_search=True)


class Source:
    """What is served, or why nobody says."""

    def __init__(self, *adapters: ServedAdapter) -> None:
        self.adapters = adapters
        self.error: SwitchyardError | None = None
        self.inputs: dict[str, TrainingInputs | SwitchyardError | None] = {}
        self.asked: list[str] = []

    async def served(self) -> Served:
        self.asked.append("served")
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return Served("model-1", INDEX, self.adapters)

    async def training_inputs(self, digest: str) -> TrainingInputs | None:
        self.asked.append(digest)
        found = self.inputs.get(digest)
        if isinstance(found, SwitchyardError):
            raise found
        return found


@pytest.fixture
def source() -> Source:
    return Source(TONE)


@pytest.fixture
def config(tmp_path) -> EngineConfig:
    return EngineConfig(data=tmp_path)


@pytest.fixture
def made(tmp_path):
    """A router of what the source serves, in the folder where the host looks."""
    keys = Surroundings("model-1", INDEX, {"tone": "t1"}).keys("default")
    one = artefact(keys=keys, signals=("lexical.tokens", "lexical.digits"), learned=learned(mean=6.0))
    return write_artefact(one, tmp_path / "router")


async def test_nothing_is_asked_where_there_is_no_router_and_nobody_wants_signals(config, source):
    host = RouterHost(config, source)
    routing = await host.decide([LONG])
    assert (routing.router, routing.keys, source.asked) == ("score-rule-1", None, [])
    routing = await host.decide([LONG], wants_signals=True)
    assert routing.keys is not None and source.asked == ["served", "t1"]
    host.close()


@pytest.mark.usefixtures("made")
async def test_requests_that_come_first_wait_for_one_check(config, source):
    host = RouterHost(config, source)
    found = await asyncio.gather(*(host.decide([LONG]) for _ in range(5)))
    assert {each.decisions[0].route for each in found} == {"rag"}
    assert source.asked == ["served", "t1"]
    host.close()


async def test_a_first_request_that_leaves_does_not_end_the_check(config, source, made):
    host = RouterHost(config, source)
    leaving = asyncio.create_task(host.decide([LONG]))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await host.decide([LONG])).router == made.name
    host.close()


async def test_where_nobody_says_what_is_served_the_rule_decides_until_somebody_does(config, source, made):
    source.error = ComponentUnavailable("generator", "it died or is being restarted")
    host = RouterHost(config, source)
    assert (await host.decide([LONG])).router == "score-rule-1"
    status = await host.status()
    assert status["ready"] and status["is_learned"] and status["name"] == made.name
    assert any("what is served is not known anew: " in warning for warning in status["warnings"])
    source.error = None
    await host.check()
    assert (await host.decide([LONG])).router == made.name
    source.error = ComponentUnavailable("generator", "it died or is being restarted")
    await host.check()
    # What was known before holds.
    assert (await host.decide([LONG])).router == made.name
    assert len((await host.status())["warnings"]) == 1
    host.close()


@pytest.mark.usefixtures("made")
async def test_training_inputs_are_asked_for_once_and_again_for_other_files(config, source):
    source.inputs["t1"] = INPUTS
    host = RouterHost(config, source)
    for _ in range(3):
        await host.check()
    assert source.asked.count("t1") == 1
    source.adapters = (replace(TONE, digest="t2"), NEWS)
    await host.check()
    await host.check()
    assert [source.asked.count(digest) for digest in ("t1", "t2", "n1")] == [1, 1, 1]
    routing = await host.decide([LONG])
    assert routing.keys is not None and routing.keys["adapters"] == {"tone": "t2", "news": "n1"}
    assert routing.arms == ("base", "base+context", "news", "tone", "tone+context")
    host.close()


@pytest.mark.usefixtures("made")
async def test_an_adapter_whose_inputs_are_broken_is_told_and_the_others_are_read(config, source):
    source.adapters = (TONE, NEWS)
    source.inputs = {"t1": InvalidAdapter("tone", "inputs.safetensors is missing"), "n1": INPUTS}
    host = RouterHost(config, source)
    (found,) = (await host.decide([LONG], wants_signals=True)).decisions
    assert found.signals is not None
    assert "adapter.max_cosine.news" in found.signals and "adapter.max_cosine.tone" not in found.signals
    (warning,) = (await host.status())["warnings"]
    assert "inputs.safetensors is missing" in warning
    host.close()


async def test_the_host_looks_again_by_itself(config, source, made, tmp_path):
    host = RouterHost(config, source, check_s=0.01)
    assert (await host.status())["name"] == made.name
    (tmp_path / "router").rename(tmp_path / "away")
    for _ in range(1000):
        if (await host.status())["name"] == "score-rule-1":
            break
        await asyncio.sleep(0.01)
    assert (await host.status())["name"] == "score-rule-1"
    host.close()


@pytest.mark.usefixtures("made")
async def test_many_questions_are_decided_as_one_is(config, source):
    host = RouterHost(config, source)
    short = replace(LONG, text="what now?")
    together = (await host.decide([LONG, short] * 10)).decisions
    alone = [(await host.decide([one])).decisions[0] for one in (LONG, short)]
    assert list(together) == alone * 10
    host.close()


def test_host_that_has_started_keeps_no_request_waiting_for_what_is_served(config, source):
    write_artefact(artefact(learned=learned()), config.data / "router")

    async def asked_after_start() -> tuple[list[str], list[str]]:
        host = RouterHost(config, source, check_s=600)
        try:
            await host.start()
            before = list(source.asked)
            await host.start()
            await host.decide([LONG])
            return before, source.asked
        finally:
            host.close()

    before, after = asyncio.run(asked_after_start())
    assert "served" in before and after == before


def test_gateways_take_the_router_of_postgres_and_go_on_with_it_while_that_is_away(crashing, tmp_path, source):
    write_artefact(artefact(learned=learned()), tmp_path / "made")
    with contextlib.closing(SharedFiles(crashing.url)) as files:
        name = SharedRouter(files, tmp_path).publish(tmp_path / "made").name

    async def names() -> tuple[str, str, list[str]]:
        host = RouterHost(EngineConfig(data=tmp_path / "node"), source, check_s=600)
        try:
            first = await host.status()
            await asyncio.to_thread(crashing.crash)
            await host.check()
            later = await host.status()
        finally:
            host.close()
        return first["name"], later["name"], later["warnings"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWITCHYARD_STORE", crashing.url)
        first, later, warnings = asyncio.run(names())
    assert first == later == name
    assert any("whether there is another router is not known" in each for each in warnings)
    assert not any(crashing.password in each for each in warnings)
