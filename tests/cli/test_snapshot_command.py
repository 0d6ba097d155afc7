"""`switchyard snapshot`: files that a stopped server's collections come back from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from retrieval.stub_encoder import SETTINGS, StubEncoder

from engine.cli.main import main
from engine.retrieval.service import Retriever
from engine.retrieval.store.inbox import Inbox
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SWITCHYARD_DATA", str(tmp_path / "data"))
    retriever = Retriever(tmp_path / "data", StubEncoder(), SETTINGS)
    retriever.write("docs", [DocumentWrite(f"site/{i}", b"Page %d of the site." % i) for i in range(3)])
    retriever.close()
    return tmp_path / "data"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["snapshot", *map(str, arguments)])


def names(data: Path) -> list[str]:
    with contextlib.closing(Store(data)) as store:
        return [state.name for state in store.collections()]


def test_saved_collection_is_verified_and_restored_under_another_name(data, tmp_path):
    file = tmp_path / "docs.snapshot"
    saved = run("save", "docs", file)
    assert saved.exit_code == 0, saved.output
    assert saved.stdout.startswith(f"saved docs at version 1 in {file}: 3 documents, 3 chunks")
    assert run("verify", file).stdout.startswith(f"sound: docs at version 1 in {file}: 3 documents")
    restored = run("restore", file, "--as", "copy")
    assert restored.stdout == f"restored copy from {file}: 3 documents, 3 chunks; index version 2\n"
    assert names(data) == ["copy", "docs"]


def test_collection_moves_to_postgres_by_its_url(data, tmp_path, postgres, monkeypatch):
    file, url = tmp_path / "docs.snapshot", postgres.new_schema()
    run("save", "docs", file)
    restored = run("restore", file, "--data", tmp_path / "caches", "--store", url)
    assert restored.exit_code == 0, restored.output
    monkeypatch.setenv("SWITCHYARD_STORE", url)
    saved = run("save", "docs", tmp_path / "again", "--data", tmp_path / "caches")
    assert saved.stdout.startswith(f"saved docs at version 2 in {tmp_path / 'again'}: 3 documents, 3 chunks")
    assert postgres.password not in restored.output + saved.output


def test_json_prints_one_object_and_nothing_else_on_standard_output(data, tmp_path):
    file = tmp_path / "docs.snapshot"
    saved = json.loads(run("save", "docs", file, "--json").stdout)
    assert (saved["collection"], saved["version"], saved["documents"]) == ("docs", 1, 3)
    assert json.loads(run("verify", file, "--json").stdout) == saved
    restored = json.loads(run("restore", file, "--replace", "--json").stdout)
    assert restored == {"file": str(file), "collection": "docs", "version": 2, "documents": 3, "chunks": 3}


def test_existing_collection_is_kept_unless_replace_is_given(data, tmp_path):
    file = tmp_path / "docs.snapshot"
    run("save", "docs", file)
    refused = run("restore", file)
    assert refused.exit_code == 1
    assert "'docs' exists already, at version 1. Restore under another name with --as NAME" in refused.stderr


def test_folder_of_a_running_server_is_refused(data, tmp_path):
    run("save", "docs", tmp_path / "file")
    with contextlib.closing(Store(data)):
        for arguments in (("save", "docs", tmp_path / "new"), ("restore", tmp_path / "file")):
            refused = run(*arguments)
            assert refused.exit_code == 1
            assert f"{data}: another server uses this data folder. Stop it" in refused.stderr
    assert not (tmp_path / "new").exists()


def test_save_from_a_folder_without_a_knowledge_base_makes_none(tmp_path):
    refused = run("save", "docs", tmp_path / "file", "--data", tmp_path / "empty")
    assert refused.exit_code == 1
    assert "empty: holds no knowledge base. Name the folder of your server with --data" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_named_and_leaves_no_folder(data, tmp_path):
    file = tmp_path / "docs.snapshot"
    run("save", "docs", file)
    file.write_bytes(file.read_bytes()[:-100])
    for arguments in (("verify", file), ("restore", file, "--data", tmp_path / "new")):
        refused = run(*arguments)
        assert refused.exit_code == 1
        assert f"{file}: it is no Switchyard snapshot, or its end is missing" in refused.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["save", "restore", "verify"])
def test_help_holds_an_example(command):
    shown = run(command, "--help").stdout
    assert "Example:\n" in shown and f" switchyard snapshot {command} " in shown


def test_save_says_how_many_writes_wait_and_are_not_in_it(data, tmp_path):
    with contextlib.closing(Store(data)) as store:
        Inbox(store, 10).put("docs", "", [DocumentWrite("site/9", b"waiting")])
    saved = run("save", "docs", tmp_path / "docs.snapshot", "--json")
    assert json.loads(saved.stdout)["documents"] == 3
    assert "1 writes to docs wait to be applied and are not in the snapshot" in saved.stderr
    refused = run("restore", tmp_path / "docs.snapshot", "--as", "docs")
    assert refused.exit_code == 1
