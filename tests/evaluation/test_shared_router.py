"""The router in PostgreSQL: published once, and the same in every gateway, whatever lies on its machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_router import artefact
from sqlalchemy import text

from engine.cli.main import main
from engine.errors import DataFolderError, InvalidRouter
from engine.evaluation.shared_router import CACHE_FOLDER, SharedRouter
from engine.retrieval.store.shared_files import SharedFiles
from engine.routing.artefact import ARRAYS_FILE, read_artefact, write_artefact


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two routers."""
    made = [tmp_path / "first", tmp_path / "second"]
    for day, folder in enumerate(made, 1):
        write_artefact(replace(artefact(), created=f"2026-01-0{day}T00:00:00+00:00"), folder)
    return made


def test_router_in_postgres_is_fetched_by_machines_with_empty_data_folders(
    shared_files: SharedFiles, folders: list[Path], tmp_path: Path
):
    here, there = (SharedRouter(shared_files, tmp_path / name) for name in ("here", "there"))
    assert here.fetch() is None
    for folder in folders:
        published = here.publish(folder)
        found = [each.fetch() for each in (here, there, here)]
        assert {read_artefact(each).name for each in found if each is not None} == {published.name}
        assert found[0] == found[2]
        assert len(list((tmp_path / "here" / CACHE_FOLDER).iterdir())) == 1
    assert there.withdraw() == published.name
    assert here.fetch() is there.fetch() is there.withdraw() is None


def test_two_gateways_of_one_machine_share_what_was_fetched_from_postgres(
    shared_files: SharedFiles, folders: list[Path], tmp_path: Path
):
    first, second = (SharedRouter(shared_files, tmp_path / "here") for _ in range(2))
    first.publish(folders[0])
    folder = first.fetch()
    assert folder is not None
    inode = (folder / ARRAYS_FILE).stat().st_ino
    assert second.fetch() == folder and (folder / ARRAYS_FILE).stat().st_ino == inode
    (folder / ARRAYS_FILE).write_bytes(b"changed")
    third = SharedRouter(shared_files, tmp_path / "here")
    assert third.fetch() == folder and read_artefact(folder).created.startswith("2026-01-01")


def test_router_that_is_damaged_in_postgres_is_not_taken_up(
    shared_files: SharedFiles, folders: list[Path], tmp_path: Path
):
    shared = SharedRouter(shared_files, tmp_path / "here")
    shared.publish(folders[0])
    with shared_files._engine.begin() as connection:
        connection.execute(text("UPDATE file_pieces SET content = content || '\\x00'::bytea"))
    with pytest.raises(DataFolderError, match="Add what it belongs to again"):
        shared.fetch()
    assert list((tmp_path / "here" / CACHE_FOLDER).iterdir()) == []


def test_folder_without_a_router_changes_nothing_in_postgres(
    shared_files: SharedFiles, folders: list[Path], tmp_path: Path
):
    shared = SharedRouter(shared_files, tmp_path / "here")
    shared.publish(folders[0])
    (folders[1] / ARRAYS_FILE).write_bytes(b"broken")
    with pytest.raises(InvalidRouter):
        shared.publish(folders[1])
    found = shared.fetch()
    assert found is not None and read_artefact(found).created.startswith("2026-01-01")


def test_publish_command_puts_a_router_into_postgres_and_withdraws_it(postgres_url: str, folders: list[Path]):
    def publish(*arguments: str) -> dict:
        done = CliRunner().invoke(main, ["router", "publish", *arguments, "--store", postgres_url, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    name = read_artefact(folders[0]).name
    published = publish(str(folders[0]))
    assert (published["router"], published["withdrawn"]) == (name, False)
    assert publish("--withdraw")["router"] == name and publish("--withdraw")["router"] is None
    for arguments in ([], [str(folders[0]), "--withdraw"]):
        assert CliRunner().invoke(main, ["router", "publish", *arguments, "--store", postgres_url]).exit_code == 2
