"""Names, digests and weights in memory: what is read when, and what is kept for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import ComponentUnavailable, InvalidAdapter, SwitchyardError, UnknownAdapter, UnknownModel
from engine.generation.adapters.files import AdapterInfo, AdapterWeights
from engine.generation.adapters.library import AdapterLibrary
from engine.generation.adapters.store import PackedAdapter


class Files:
    """Stands for the disk: the content of a path is its digest."""

    def __init__(self) -> None:
        self.content: dict[Path, str] = {}
        self.gate = threading.Event()
        self.gate.set()

    def read(self, path: Path, name: str) -> tuple[AdapterInfo, AdapterWeights]:
        assert self.gate.wait(20)
        digest = self.content.get(path)
        if digest is None:
            raise InvalidAdapter(name, f"there is no folder {path}")
        return AdapterInfo(name, digest, path, 4, ("q",), 10, ""), AdapterWeights(digest, 4, {})


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def changed() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture
def library(files: Files, changed: threading.Semaphore) -> Iterator[AdapterLibrary]:
    library = AdapterLibrary(
        files.read, lambda weights: PackedAdapter(weights.digest, 8, {}), num_kept=2, on_change=changed.release
    )
    yield library
    library.close()


@pytest.fixture
def serve(files: Files, library: AdapterLibrary) -> Callable[[str, str], AdapterInfo]:
    def serve(name: str, digest: str) -> AdapterInfo:
        files.content[Path(name)] = digest
        return library.load(name, Path(name))

    return serve


def changes(library: AdapterLibrary) -> tuple[dict[str, SwitchyardError], list[str]]:
    return library.take_changes()


def test_unknown_name_is_refused_without_a_read(library: AdapterLibrary, serve):
    serve("tone", "d1")
    reads = library.num_reads
    with pytest.raises(UnknownModel, match=r"'other' is unknown; known: auto, tone"):
        library.acquire("other")
    assert library.num_reads == reads


def test_adapter_that_cannot_be_read_changes_nothing(library: AdapterLibrary, serve):
    info = serve("tone", "d1")
    with pytest.raises(InvalidAdapter, match="there is no folder nowhere"):
        library.load("tone", Path("nowhere"))
    assert library.infos() == [info]


def test_adapter_of_another_digest_than_asked_for_changes_nothing(library: AdapterLibrary, files: Files, serve):
    info = serve("tone", "d1")
    files.content[Path("other")] = "d2"
    with pytest.raises(InvalidAdapter, match="its files have the digest d2"):
        library.load("tone", Path("other"), "d3")
    assert library.infos() == [info]
    assert library.load("tone", Path("other"), "d2").digest == "d2"


def test_replaced_name_stands_for_the_new_digest_and_holders_keep_the_old_weights(library: AdapterLibrary, serve):
    serve("tone", "d1")
    assert library.acquire("tone").digest == "d1"
    serve("tone", "d2")
    assert library.acquire("tone").digest == "d2"
    assert library.is_loaded("d1") and changes(library) == ({}, [])
    library.release("d1")
    assert not library.is_loaded("d1") and library.weights("d1") is None
    assert changes(library) == ({}, ["d1"])


def test_unloaded_name_is_refused_and_its_holder_keeps_the_weights(library: AdapterLibrary, serve):
    serve("tone", "d1")
    library.acquire("tone")
    library.unload("tone")
    with pytest.raises(UnknownModel):
        library.acquire("tone")
    with pytest.raises(UnknownAdapter):
        library.unload("tone")
    assert library.is_loaded("d1")
    library.release("d1")
    assert changes(library)[1] == ["d1"]


def test_digest_that_another_name_stands_for_is_not_retired(library: AdapterLibrary, serve):
    serve("tone", "d1")
    serve("same", "d1")
    library.unload("tone")
    assert library.is_loaded("d1") and changes(library)[1] == []
    library.unload("same")
    serve("again", "d1")  # before anybody heard that it had gone
    assert changes(library)[1] == []


def test_weights_beyond_those_kept_are_read_again_off_the_caller_s_thread(
    library: AdapterLibrary, files: Files, changed: threading.Semaphore, serve
):
    for number in range(4):
        serve(f"a{number}", f"d{number}")
    assert [library.is_loaded(f"d{number}") for number in range(4)] == [False, False, True, True]
    while changed.acquire(blocking=False):
        pass
    files.gate.clear()
    assert library.acquire("a0").digest == "d0"
    assert library.acquire("a0").digest == "d0"
    assert not library.is_loaded("d0")
    files.gate.set()
    assert changed.acquire(timeout=20)
    assert library.is_loaded("d0") and library.num_reads == 5


def test_files_that_changed_since_are_not_served_in_place_of_what_was_checked(
    library: AdapterLibrary, files: Files, changed: threading.Semaphore, serve
):
    for number in range(3):
        serve(f"a{number}", f"d{number}")
    while changed.acquire(blocking=False):
        pass
    files.content[Path("a0")] = "other"
    library.acquire("a0")
    assert changed.acquire(timeout=20)
    failed, _ = changes(library)
    assert "its files changed since; load it again" in str(failed["d0"])
    assert not library.is_loaded("d0") and not library.is_loaded("other")


def test_closed_library_loads_nothing(library: AdapterLibrary, serve):
    library.close()
    with pytest.raises(ComponentUnavailable, match="no adapter can be loaded"):
        serve("tone", "d1")
