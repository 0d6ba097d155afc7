"""Followers hold a generation ready while it is built, and go on with the old one until they have all of the new."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from executors import ImmediateExecutor
from interrupting import interrupt
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import ModelSourceError
from engine.retrieval.following import Follower
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Evidence, Query

FIRST = SETTINGS.model_copy(update={"model": "first"})


@pytest.fixture
def retriever(open_retriever) -> Retriever:
    retriever = open_retriever(StubEncoder("first"), FIRST, load_encoder=StubEncoder, building=ImmediateExecutor())
    retriever.write("docs", [DocumentWrite(f"site/{n}", f"word{n} is said. ".encode() * 9) for n in range(9)])
    return retriever


@pytest.fixture
def follow(tmp_path: Path, store_at) -> Iterator[Callable[..., Follower]]:
    """Opens followers of the retriever's store; closes them."""
    opened: list[Follower] = []

    def open_one(load: Callable[[str], StubEncoder] = StubEncoder) -> Follower:
        data = tmp_path / "data"
        opened.append(Follower(data, StubEncoder("first"), FIRST, store=store_at(data), load_encoder=load))
        return opened[-1]

    yield open_one
    for follower in opened:
        follower.close()


def ask(follower: Follower, text: str = "word3 is said") -> tuple[int, str]:
    """Version and encoder of the answer."""
    (found,) = follower.evidence([Query(text, "docs", 3, mode="dense", wants_clues=True)])
    assert isinstance(found, Evidence) and found.clues is not None, found
    return found.version, {StubEncoder(name).identity.digest: name for name in ("first", "second")}[found.clues.encoder]


def loaded(follower: Follower) -> None:
    """Wait for the encoder that the follower loads beside."""
    thread = follower._encoders._thread
    assert thread is not None
    thread.join()


def test_generation_that_was_followed_while_it_was_built_is_there_at_the_switch(retriever, follow):
    follower = follow()

    def look() -> None:
        follower.catch_up()
        if follower._encoders._thread is not None:
            loaded(follower)

    interrupt(retriever, dict.fromkeys(range(1, 99), look))
    retriever.generations.build("docs", model="second", switch="always")
    held = [beside.live for beside in follower._upcoming._held.values()]
    assert len(held) == 1 and held[0].num_chunks == retriever.status()["chunks"]
    follower.catch_up()
    assert follower._live["docs"] is held[0] and follower._upcoming._held == {}
    assert ask(follower) == (2, "second")
    retriever.write("docs", [DocumentWrite("site/3", b"word3 is written anew.")])
    follower.catch_up()
    assert ask(follower) == (3, "second")
    assert follower.status()["other_generations"] == retriever.status()["other_generations"] != []


def test_follower_goes_on_with_the_old_generation_until_the_encoder_of_the_new_one_is_loaded(retriever, follow):
    may_load = threading.Event()

    def load(model: str) -> StubEncoder:
        assert may_load.wait(30)
        return StubEncoder(model)

    follower = follow(load)
    retriever.write("more", [DocumentWrite("a", b"word3 of another collection")])
    retriever.generations.build("docs", model="second", switch="always")
    retriever.write("docs", [DocumentWrite("site/3", b"word3 is written anew.")])
    follower.catch_up()
    assert follower._live["docs"].version == 1 and "more" in follower._live
    may_load.set()
    loaded(follower)
    follower.catch_up()
    assert ask(follower) == (3, "second")


def test_follower_that_cannot_load_the_encoder_says_so_and_goes_on(retriever, follow, caplog):
    def load(model: str) -> StubEncoder:
        raise ModelSourceError(f"{model} is not there.")

    follower = follow(load)
    retriever.generations.build("docs", model="second", switch="always")
    for _ in range(3):
        follower.catch_up()
        loaded(follower)
    assert ask(follower) == (1, "first")
    assert caplog.text.count("collection docs cannot be followed") == 1 and "second is not there" in caplog.text


def test_generation_that_is_only_built_is_let_go(retriever, follow):
    follower = follow()
    interrupt(retriever, dict.fromkeys(range(1, 99), follower.catch_up))
    retriever.generations.build("docs", chunk_tokens=16, switch="never")
    assert len(follower._upcoming._held) == 1
    follower.catch_up()
    assert follower._upcoming._held == {} and ask(follower) == (1, "first")
