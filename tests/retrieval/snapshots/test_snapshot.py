"""Snapshots: a collection comes back as it was, or nothing changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, select, text
from stub_encoder import DIM, SETTINGS, StubEncoder

from engine.errors import InvalidRequest, SnapshotError, StorageFull, UnknownCollection
from engine.retrieval.service import Retriever
from engine.retrieval.snapshots.format import SEAL_PREFIX
from engine.retrieval.snapshots.snapshot import restore_snapshot, verify_snapshot, write_snapshot
from engine.retrieval.store import tables
from engine.retrieval.store.generations import Generations
from engine.retrieval.store.inbox import Inbox
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, Evidence, Query

OTHERS = SETTINGS.model_copy(update={"model": "others"})


def open_retriever(data: Path, name: str = "words") -> Retriever:
    return Retriever(data, StubEncoder(name), SETTINGS)


def fill(data: Path, num_documents: int = 8, saying: str = "first", name: str = "words") -> None:
    retriever = open_retriever(data, name)
    items = [
        DocumentWrite(
            f"site/{i}", f"# Größe {i}\n\n{saying} saying {i} of the region. ".encode() * 9, metadata={"n": i}
        )
        for i in range(num_documents)
    ]
    retriever.write("docs", items)
    retriever.write("docs", [DocumentWrite("site/0", delete=True), DocumentWrite("empty", b" ")])
    retriever.write("docs", [DocumentWrite("site/1", b"of another tenant")], tenant="acme")
    retriever.close()


def held(data: Path, collection: str = "docs", name: str = "words") -> dict[str, Any]:
    """What clients read of a collection, but for the versions."""
    retriever = open_retriever(data, name)
    try:
        found: dict[str, Any] = {}
        for tenant in ("", "acme"):
            page = retriever.list_documents(collection, source=None, after=None, limit=1000, tenant=tenant)
            documents = [retriever.get_document(collection, row["id"], tenant=tenant) for row in page]
            (evidence,) = retriever.evidence(
                [Query("saying of a region", collection, 1000, tenant=tenant, mode="dense")]
            )
            assert isinstance(evidence, Evidence)
            assert len(evidence.passages) == sum(document["chunks"] for document in documents)
            found[tenant] = [document | {"version": None} for document in documents], evidence.passages
        return found
    finally:
        retriever.close()


def version_of(data: Path, collection: str = "docs") -> int:
    store = Store(data)
    try:
        return next(state.version for state in store.collections() if state.name == collection)
    finally:
        store.close()


def save(data: Path, target: Path, collection: str = "docs") -> None:
    store = Store(data)
    try:
        write_snapshot(store, collection, target)
    finally:
        store.close()


def restore(data: Path, source: Path, **options: Any) -> int:
    store = Store(data)
    try:
        return restore_snapshot(store, source, **options).version
    finally:
        store.close()


def everything(data: Path) -> dict[str, list[Any]]:
    """Every row of the database."""
    store = Store(data)
    with store.reading() as connection:
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        found = {table.name: connection.execute(select(table)).all() for table in tables.metadata.sorted_tables}
    store.close()
    used = {row.text_hash for row in found["chunks"]}
    assert {row.text_hash for row in found["embeddings"]} == used
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A data folder and its snapshot `file`; read only."""
    folder = tmp_path_factory.mktemp("filled")
    fill(folder / "data")
    save(folder / "data", folder / "file")
    return folder


@pytest.fixture
def snapshot(filled, tmp_path) -> Path:
    return Path(shutil.copy(filled / "file", tmp_path / "docs.snapshot"))


def test_restored_collection_reads_and_searches_as_the_saved_one(filled, snapshot, tmp_path):
    restore(tmp_path / "new", snapshot)
    assert held(tmp_path / "new") == held(filled / "data")


def test_manifest_says_what_is_inside(snapshot):
    manifest = verify_snapshot(snapshot)
    assert (manifest.collection, manifest.version, manifest.documents) == ("docs", 3, 9)
    assert manifest.encoder == StubEncoder().identity
    assert manifest.chunking == {"chunk_tokens": 30, "chunk_overlap_tokens": 5}
    with zipfile.ZipFile(snapshot) as archive:
        for name, part in manifest.parts.items():
            content = archive.read(name)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (part.size_bytes, part.sha256)
        lines = archive.read("documents.jsonl").decode().splitlines()
    assert sum(len(json.loads(line)["chunks"]) for line in lines) == manifest.chunks > 9


def test_nothing_is_embedded_anew_after_a_restore(snapshot, tmp_path):
    restore(tmp_path / "new", snapshot)
    encoder = StubEncoder()
    retriever = Retriever(tmp_path / "new", encoder, SETTINGS)
    body = "# Größe 1\n\nfirst saying 1 of the region. ".encode() * 9
    (result,) = retriever.write("docs", [DocumentWrite("site/1", body, metadata={"n": 1})])
    retriever.close()
    assert (result.status, encoder.num_passages) == ("unchanged", 0)


def test_restored_collection_takes_updates_and_deletes(snapshot, tmp_path):
    version = restore(tmp_path / "new", snapshot)
    retriever = open_retriever(tmp_path / "new")
    update, delete = retriever.write(
        "docs", [DocumentWrite("site/2", b"changed"), DocumentWrite("site/3", delete=True)]
    )
    retriever.close()
    assert (update.status, delete.status, update.version) == ("updated", "deleted", version + 1)
    assert {document["id"] for document in held(tmp_path / "new")[""][0]} == {
        "empty", "site/1", "site/2", "site/4", "site/5", "site/6", "site/7"
    }  # fmt: skip
    everything(tmp_path / "new")


def test_restore_under_another_name_leaves_the_first_alone(snapshot, filled, tmp_path):
    data = shutil.copytree(filled / "data", tmp_path / "data")
    restore(data, snapshot, as_name="copy")
    assert held(data, "copy") == held(data, "docs") == held(filled / "data")
    assert version_of(data) == 3
    everything(data)


def test_existing_collection_is_replaced_only_where_that_is_asked_for(snapshot, tmp_path, filled):
    data = tmp_path / "data"
    fill(data, 3, "other")
    before, content = everything(data), held(data)
    with pytest.raises(SnapshotError, match=r"collection 'docs' exists already, at version 3\. Restore .*--as NAME"):
        restore(data, snapshot)
    assert (everything(data), held(data)) == (before, content)
    restore(data, snapshot, replace=True)
    assert held(data) == held(filled / "data")
    everything(data)


def test_versions_go_on_from_the_higher_of_snapshot_and_store(snapshot, tmp_path):
    data = tmp_path / "data"
    assert restore(data, snapshot) == 4
    retriever = open_retriever(data)
    for i in range(6):
        retriever.write("docs", [DocumentWrite("more", b"write %d" % i)])
    retriever.close()
    assert version_of(data) == 10
    assert restore(data, snapshot, replace=True) == version_of(data) == 11
    retriever = open_retriever(data)
    (found,) = retriever.evidence([Query("write", "docs", 3, min_version=10)])
    retriever.close()
    assert isinstance(found, Evidence) and found.version == 11


def test_log_of_a_replaced_collection_leads_to_its_documents(snapshot, tmp_path):
    data = tmp_path / "data"
    fill(data, 4, "other")
    restore(data, snapshot, replace=True)
    found = everything(data)
    present = {}
    for row in found["operations"]:
        present[row.document_pk] = row.op
    assert {pk for pk, op in present.items() if op == "put"} == {row.pk for row in found["documents"]}
    assert [row.version for row in found["operations"]] == sorted(row.version for row in found["operations"])


def test_writes_during_a_snapshot_are_not_in_it(tmp_path, filled):
    data = shutil.copytree(filled / "data", tmp_path / "data")
    retriever, versions = open_retriever(data), []

    def write_meanwhile(_what: str, _done: int, _total: int) -> None:
        items = [DocumentWrite(f"site/{i}", b"written meanwhile") for i in range(2, 20)]
        versions.append(retriever.write("docs", items)[0].version)

    manifest = write_snapshot(retriever._store, "docs", tmp_path / "file", progress=write_meanwhile)
    retriever.close()
    assert versions == [4] and manifest.version == 3
    restore(tmp_path / "new", tmp_path / "file")
    assert held(tmp_path / "new") == held(filled / "data")


def test_unknown_collection_is_named_and_no_file_appears(tmp_path, filled):
    data = shutil.copytree(filled / "data", tmp_path / "data")
    with pytest.raises(UnknownCollection, match="'nowhere' is unknown; known: docs"):
        save(data, tmp_path / "file", "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("content", [b"", b"my notes", b"PK\x03\x04" * 100])
def test_file_that_is_no_snapshot_is_neither_replaced_nor_restored(tmp_path, filled, content):
    data, target = shutil.copytree(filled / "data", tmp_path / "data"), tmp_path / "notes"
    target.write_bytes(content)
    with pytest.raises(SnapshotError, match="exists and is no snapshot; it is left alone"):
        save(data, target)
    with pytest.raises(SnapshotError, match="it is no Switchyard snapshot, or its end is missing"):
        restore(data, target)
    assert target.read_bytes() == content


def test_missing_file_and_missing_folder_are_named(tmp_path, filled):
    data = shutil.copytree(filled / "data", tmp_path / "data")
    with pytest.raises(SnapshotError, match=r"absent: cannot be read \(No such file"):
        restore(data, tmp_path / "absent")
    with pytest.raises(SnapshotError, match=r"absent/file: cannot be written \(No such file"):
        save(data, tmp_path / "absent" / "file")


def test_any_flipped_bit_or_missing_end_is_refused_and_changes_nothing(snapshot, tmp_path):
    whole, data = snapshot.read_bytes(), tmp_path / "data"
    fill(data, 2, "other")
    before = everything(data)
    store = Store(data)
    rng = random.Random(1)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(40)]
    for position in [rng.randrange(len(whole)) for _ in range(120)] + [0, len(whole) - 65, len(whole) - 1]:
        damaged.append(whole[:position] + bytes([whole[position] ^ 1 << rng.randrange(8)]) + whole[position + 1 :])
    for content in damaged:
        snapshot.write_bytes(content)
        with pytest.raises(SnapshotError, match="Nothing was changed; copy the snapshot anew, or take another"):
            restore_snapshot(store, snapshot, as_name="copy")
    store.close()
    assert everything(data) == before


def forge(source: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """Change a snapshot as one who knows the format would: every checksum fits again unless `change` sets its own."""
    with zipfile.ZipFile(source) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(contents.pop("manifest.json"))
    sums = {name: dict(part) for name, part in manifest["parts"].items()}
    change(manifest, contents)
    for name, part in manifest["parts"].items():
        if part == sums.get(name) and name in contents:
            part |= {"size_bytes": len(contents[name]), "sha256": hashlib.sha256(contents[name]).hexdigest()}
    with zipfile.ZipFile(source, "w") as archive:
        for name, content in {**contents, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, content)
        archive.comment = SEAL_PREFIX + b"0" * 64
    sealed = source.read_bytes()[:-64]
    source.write_bytes(sealed + hashlib.sha256(sealed).hexdigest().encode())


def set_in_first_document(contents: dict[str, bytes], **values: Any) -> None:
    lines = contents["documents.jsonl"].splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | values).encode()
    contents["documents.jsonl"] = b"\n".join(lines) + b"\n"


def add_file(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    contents["../../outside"] = b"x"


def change_dimension(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    manifest["encoder"]["dim"] = DIM // 2


def add_nan(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    vectors = np.frombuffer(contents["vectors.f32"], "<f4").copy()
    vectors[5] = np.nan
    contents["vectors.f32"] = vectors.tobytes()


def double_document(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    first = contents["documents.jsonl"].splitlines(keepends=True)[0]
    contents["documents.jsonl"] += first
    manifest["documents"] += 1
    manifest["chunks"] += len(json.loads(first)["chunks"])


def drop_document(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    contents["documents.jsonl"] = b"".join(contents["documents.jsonl"].splitlines(keepends=True)[1:])


def rename_text(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    contents["texts.jsonl"] = contents["texts.jsonl"][:1] + b"0" * 64 + contents["texts.jsonl"][65:]


def change_sum(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
    manifest["parts"]["texts.jsonl"]["sha256"] = "0" * 64


FORGERIES = {
    "later format": (
        lambda m, c: m.update(format_version=3),
        r"format version 3, this program reads 1 and 2\. Use the",
    ),
    "no format": (lambda m, c: m.pop("format_version"), "format version None, this program reads 1 and 2"),
    "unknown key": (lambda m, c: m.update(surprise=1), "manifest.json: surprise: Extra inputs"),
    "path in the name": (lambda m, c: m.update(collection="../../etc"), r"'\.\./\.\./etc' is no valid name"),
    "path of a part": (add_file, r"it holds other files than a snapshot does: .*outside"),
    "other dimension": (change_dimension, "vectors of dimension 32 take .* bytes, vectors.f32 has"),
    "no dimension": (lambda m, c: m["encoder"].update(dim=0), "vectors without a dimension"),
    "not a number": (add_nan, r"vectors.f32 from row 0: a vector holds NaN, infinity"),
    "document twice": (double_document, "it holds document '.*' twice"),
    "document missing": (drop_document, "it holds 8 documents, its manifest says 9"),
    "text without a chunk": (rename_text, "its chunks and its vectors are not of the same texts"),
    "other sum": (change_sum, "texts.jsonl has another SHA-256 than its manifest says"),
    "odd outline": (
        lambda m, c: set_in_first_document(c, outline=[[["a"], 1]]),
        r"documents.jsonl line 1: outline: 0: 0: Input should be a valid integer",
    ),
    "negative version": (lambda m, c: m.update(version=-1), "manifest.json: version: Input should be greater"),
    "bad id": (lambda m, c: set_in_first_document(c, id="a\nb"), "line 1: document id .* holds a control character"),
    "text of another type": (
        lambda m, c: set_in_first_document(c, text=5),
        "line 1: text: Input should be a valid str",
    ),
    "chunk outside": (lambda m, c: set_in_first_document(c, text=""), "line 1: a chunk lies outside of its document"),
    "no JSON": (lambda m, c: c.update({"documents.jsonl": b"{"}), "documents.jsonl line 1: .*Invalid JSON"),
    "texts are numbers": (lambda m, c: c.update({"texts.jsonl": b"1\n2\n"}), "texts.jsonl: holds what is no hash"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_snapshot_that_no_program_of_ours_wrote_is_refused_and_changes_nothing(name, snapshot, tmp_path):
    change, message = FORGERIES[name]
    forge(snapshot, change)
    store = Store(tmp_path / "data")
    with pytest.raises(SnapshotError, match=message):
        restore_snapshot(store, snapshot)
    with pytest.raises(SnapshotError, match=message):
        verify_snapshot(snapshot)
    assert store.collections() == []
    store.close()
    assert not any(everything(tmp_path / "data")[name] for name in ("documents", "chunks", "embeddings", "operations"))


def test_forged_snapshot_that_is_right_is_restored(snapshot, filled, tmp_path):
    """Shows that the refusals above are due to the one change that each makes."""
    forge(snapshot, lambda manifest, contents: None)
    restore(tmp_path / "data", snapshot)
    assert held(tmp_path / "data") == held(filled / "data")


def test_snapshot_of_the_format_before_is_restored(snapshot, filled, tmp_path):
    def age(manifest: dict[str, Any], contents: dict[str, bytes]) -> None:
        manifest["format_version"] = 1
        del manifest["model"]
        documents = [json.loads(line) for line in contents["documents.jsonl"].splitlines()]
        lines = [json.dumps({key: row[key] for key in row.keys() - {"outline"}}).encode() for row in documents]
        contents["documents.jsonl"] = b"\n".join(lines) + b"\n"

    forge(snapshot, age)
    restore(tmp_path / "data", snapshot)
    assert held(tmp_path / "data") == held(filled / "data")


def test_outline_of_a_table_and_the_model_are_saved_and_restored(tmp_path):
    retriever = open_retriever(tmp_path / "data")
    retriever.write("docs", [DocumentWrite("t", b"name,price\nvolume,3\ndisk,5\n", "text/csv")])
    retriever.close()
    save(tmp_path / "data", tmp_path / "docs.snapshot")
    restore(tmp_path / "other", tmp_path / "docs.snapshot")
    rows = []
    for name in ("data", "other"):
        with contextlib.closing(Store(tmp_path / name)) as store, store.reading() as connection:
            outline = connection.execute(select(tables.documents.c.outline)).scalar_one()
            rows.append((outline, store.collections()[0].model))
    assert rows[0] == rows[1] and len(rows[0][0]) == 2 and rows[0][1] == SETTINGS.model


def test_malformed_name_is_refused(snapshot, tmp_path):
    with pytest.raises(InvalidRequest, match=r"'\.\./x' is no valid name"):
        restore(tmp_path / "data", snapshot, as_name="../x")


def test_snapshot_of_another_encoder_is_served_by_it_beside_other_collections(snapshot, tmp_path):
    fill(tmp_path / "data", name="others")
    restore(tmp_path / "data", snapshot, as_name="copy")
    retriever = Retriever(tmp_path / "data", StubEncoder("others"), OTHERS, load_encoder=lambda _: StubEncoder())
    encoders = {one["collection"]: one["encoder"] for one in retriever.status()["other_generations"]}
    assert encoders == {"copy": "words"}
    for name in ("docs", "copy"):
        assert isinstance(retriever.evidence([Query("volume", name, 9)])[0], Evidence)
    retriever.close()


def test_snapshot_that_replaces_a_collection_of_another_encoder_takes_its_place_whole(snapshot, tmp_path):
    fill(tmp_path / "data", name="others")
    restore(tmp_path / "data", snapshot, replace=True)
    assert held(tmp_path / "data")
    everything(tmp_path / "data")
    with contextlib.closing(Store(tmp_path / "data")) as store:
        (state,) = store.collections()
        assert (state.generation, state.encoder["name"]) == (2, "words")
        assert [one.number for one in Generations(store).all("docs")] == [2]


def test_full_disk_leaves_the_old_snapshot(snapshot, tmp_path, forks):
    fill(tmp_path / "data", 120, "much more")
    before = snapshot.read_bytes()
    # SQLite's own shared memory is a file of 32 KiB.
    said = forks.start("save", data=str(tmp_path / "data"), target=str(snapshot), max_file_bytes=40_000).rest()
    assert said == [["refused", "StorageFull"]]
    assert snapshot.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "docs.snapshot"]


def test_full_disk_during_a_restore_changes_nothing(snapshot, tmp_path):
    store = Store(tmp_path / "data")
    with store._engine.connect() as connection:
        size = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    event.listen(
        store._engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {size + 3}")
    )
    with pytest.raises(StorageFull, match="nothing of this write was stored"):
        restore_snapshot(store, snapshot)
    assert store.collections() == []
    store.close()


# A few lines in every run, many more where processes are killed anyway.
STEPS = pytest.mark.parametrize(
    "step", [47, pytest.param(5, marks=[pytest.mark.chaos, pytest.mark.timeout(1200)])], ids="every {}th line".format
)


@STEPS
def test_save_killed_at_any_line_leaves_the_old_snapshot_or_the_new_one(step, filled, tmp_path, forks):
    data, target = shutil.copytree(filled / "data", tmp_path / "data"), tmp_path / "file"
    save(data, target)
    old = target.read_bytes()
    retriever = open_retriever(data)
    retriever.write("docs", [DocumentWrite("site/1", b"changed")])
    retriever.close()
    versions = []
    files = ["snapshot.py", "writer.py", "data_folder.py", "store.py"]
    for _ in forks.kills("save", files, step=step, data=str(data), target=str(target)):
        versions.append(verify_snapshot(target).version)
        target.write_bytes(old)
    assert verify_snapshot(target).version == 4
    assert versions[0] == 3 and len(versions) > 5
    assert not (tmp_path / "file.partial").exists()


@STEPS
def test_restore_killed_at_any_line_leaves_the_old_collection_or_the_new_one(step, snapshot, filled, tmp_path, forks):
    fill(tmp_path / "old", 3, "other")
    old, new = held(tmp_path / "old"), held(filled / "data")
    files, seen = ["snapshot.py", "restoring.py", "store.py"], []
    data = shutil.copytree(tmp_path / "old", tmp_path / "data")
    for _ in forks.kills("restore", files, step=step, data=str(data), source=str(snapshot)):
        content = held(data)
        assert content in (old, new)
        everything(data)
        seen.append(content == new)
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "old", data)
    assert held(data) == new
    assert not seen[0] and len(seen) > 5


@pytest.fixture
def waiting(filled, tmp_path) -> Path:
    """A data folder in which writes to `docs` wait to be applied."""
    data = shutil.copytree(filled / "data", tmp_path / "waiting")
    store = Store(data)
    inbox = Inbox(store, 10)
    inbox.put("docs", "", [DocumentWrite("site/2", b"waiting"), DocumentWrite("site/3", delete=True)])
    inbox.put("docs", "acme", [DocumentWrite("site/1", b"waiting")])
    inbox.put("more", "", [DocumentWrite("a", b"waiting elsewhere")])
    store.close()
    return data


def drained(data: Path) -> dict[str, Any]:
    retriever = open_retriever(data)
    while not retriever._inbox.is_empty():
        time.sleep(0.002)
    retriever.close()
    return held(data)


def test_snapshot_holds_what_is_applied_and_not_what_waits(waiting, filled, tmp_path):
    save(waiting, tmp_path / "file")
    restore(tmp_path / "new", tmp_path / "file")
    assert drained(tmp_path / "new") == held(filled / "data")
    assert drained(waiting) != held(filled / "data")


def test_restore_does_not_let_older_writes_that_wait_come_on_top(waiting, filled, snapshot):
    with pytest.raises(SnapshotError, match="collection 'docs' exists already"):
        restore(waiting, snapshot)
    restore(waiting, snapshot, replace=True)
    assert drained(waiting) == held(filled / "data")
    retriever = open_retriever(waiting)
    states = {job["collection"]: job["state"] for job in retriever.jobs(limit=9)}
    assert states == {"docs": "cancelled", "more": "done"}
    assert [job["state"] for job in retriever.jobs(limit=9, tenant="acme")] == ["cancelled"]
    assert retriever.collection("more")["documents"] == 1
    retriever.close()


def test_restore_drops_writes_that_wait_for_a_new_collection_only_when_told_to(waiting, snapshot):
    with pytest.raises(SnapshotError, match=r"1 writes to collection 'more' still wait.*drop them with --replace"):
        restore(waiting, snapshot, as_name="more")
    restore(waiting, snapshot, as_name="other")
    restore(waiting, snapshot, as_name="more", replace=True)
    drained(waiting)
    assert held(waiting, "more") == held(waiting, "other")
    assert held(waiting, "docs") != held(waiting, "other")
