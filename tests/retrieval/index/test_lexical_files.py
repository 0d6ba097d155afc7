"""The lexical index on disk: an honest version, whatever happened to its files or its writer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import DataFolderError
from engine.retrieval.index import lexical, lexical_schema
from engine.retrieval.index.lexical import LexicalChunk, LexicalIndex

WRITER = """
import sys
from pathlib import Path
from test_lexical_files import reopen, write
index, version = reopen(Path(sys.argv[1]))
for version in range(version + 1, 100_000):
    write(index, version)
    print(version, flush=True)
"""

SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
from engine.errors import DataFolderError
from test_lexical_files import chunk, keys_of, reopen
index, version = reopen(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
try:
    index.apply([1], [chunk(9, " ".join(map(str, range(100_000))))], version + 1)
except DataFolderError as error:
    print(error)
assert keys_of(index, "apple") == [1, 2]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
index.apply([1], [], version + 2)
assert keys_of(index, "apple") == [2]
"""


def chunk(key: int, text: str) -> LexicalChunk:
    return LexicalChunk(key, key, "", "", "", text)


def keys_of(index: LexicalIndex, query: str) -> list[int]:
    return sorted(key for key, _ in index.search([query], 1000, tenant="")[0])


def reopen(folder: Path) -> tuple[LexicalIndex, int]:
    """The index with its version, which must not be None."""
    index = LexicalIndex(folder)
    version = index.open()
    assert version is not None
    return index, version


def write(index: LexicalIndex, version: int) -> None:
    """Replaces chunks 0 to 2 and, but for every third write, adds one; all say the version."""
    kept = [] if version % 3 == 0 else [chunk(version, f"new w{version}")]
    index.apply([0, 1, 2], [chunk(key, f"same w{version}") for key in range(3)] + kept, version)


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    """A process that may import this file and the engine under test."""
    environment = os.environ | {"PYTHONPATH": str(Path(lexical.__file__).parents[3])}
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent, env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed index of two segments and deletions at version 3."""
    folder = tmp_path / "lexical"
    index = LexicalIndex(folder)
    index.rebuild([chunk(1, "apple"), chunk(2, "apple"), chunk(3, "river")], 1)
    index.apply([], [chunk(4, "stone")], 2)
    index.apply([3], [chunk(5, "cloud")], 3)
    index.close()
    return folder


def test_index_that_is_not_there_opens_as_none_without_a_warning(tmp_path, caplog):
    assert LexicalIndex(tmp_path / "absent").open() is None
    assert LexicalIndex(tmp_path).open() is None
    assert caplog.records == []


def test_reopened_index_has_its_version_and_chunks(folder):
    index, version = reopen(folder)
    assert version == 3
    assert keys_of(index, "apple river stone cloud") == [1, 2, 4, 5]
    index.close()


def test_version_is_kept_by_writes_that_add_nothing(folder):
    index, _ = reopen(folder)
    for version in range(4, 9):
        index.apply([version], [], version)
        index.close()
        assert index.open() == version
    index.apply([1, 2], [], 9)
    index.close()
    assert index.open() == 9
    assert keys_of(index, "apple stone cloud") == []
    index.rebuild([], 12)
    index.close()
    assert index.open() == 12
    index.close()


def test_write_must_follow_a_rebuild_and_no_later_version(folder):
    index, version = reopen(folder)
    with pytest.raises(AssertionError, match="version 2 does not follow 3"):
        index.apply([], [], version - 1)
    index.close()
    with pytest.raises(AssertionError, match="rebuild comes before"):
        index.apply([], [], version + 1)


def test_commit_is_seen_after_show_and_by_the_next_opening(folder):
    index, _ = reopen(folder)
    index.commit([1], [chunk(6, "apple")], 4)
    assert keys_of(index, "apple") == [1, 2]
    index.show()
    assert keys_of(index, "apple") == [2, 6]
    index.commit([2], [], 5)
    index.close()
    assert index.open() == 5
    assert keys_of(index, "apple") == [6]
    index.close()


def test_failing_chunks_leave_the_index_as_it_was(folder):
    def failing():
        yield chunk(8, "apple")
        raise DataFolderError("the store is gone")

    index, _ = reopen(folder)
    with pytest.raises(DataFolderError, match="the store is gone"):
        index.apply([1], failing(), 4)
    assert keys_of(index, "apple") == [1, 2]
    index.apply([2], [], 5)
    assert keys_of(index, "apple") == [1]
    index.close()
    assert index.open() == 5
    with pytest.raises(DataFolderError, match="the store is gone"):
        index.rebuild(failing(), 6)
    index.close()
    assert index.open() is None


def test_interrupted_rebuild_opens_as_none(folder, monkeypatch, caplog):
    index, _ = reopen(folder)
    monkeypatch.setattr(lexical, "new_document", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        index.rebuild([chunk(1, "apple")], 4)
    index.close()
    assert index.open() is None
    assert "no commit is complete" in caplog.text


def test_index_of_other_terms_is_emptied(folder, monkeypatch, caplog):
    monkeypatch.setattr(lexical_schema, "TOKENIZER", "terms-0")
    assert LexicalIndex(folder).open() is None
    assert list(folder.iterdir()) == []
    assert "schema does not match" in caplog.text


def files_of_the_commit(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


@pytest.mark.parametrize("harm", ["remove", "truncate", "empty", "flip", "append"])
def test_any_damaged_file_is_noticed_named_and_the_folder_emptied(folder, tmp_path, harm, caplog):
    rng = random.Random(harm)
    for name in files_of_the_commit(folder):
        copy = tmp_path / f"{harm} {name}"
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        (copy / "left over").mkdir()
        content = bytearray((copy / name).read_bytes())
        position = rng.randrange(len(content))
        if harm == "flip":
            content[position] ^= 0x80
        damaged = {"truncate": content[:position], "empty": b"", "append": content + b"x"}.get(harm, content)
        (copy / name).unlink() if harm == "remove" else (copy / name).write_bytes(damaged)
        caplog.clear()
        index = LexicalIndex(copy)
        assert index.open() is None, name
        assert list(copy.iterdir()) == []
        (record,) = caplog.records
        assert str(copy) in record.message and "\n" not in record.message
        index.rebuild([chunk(1, "apple")], 7)
        assert keys_of(index, "apple") == [1]
        index.close()
        assert index.open() == 7
        index.close()


@pytest.mark.parametrize("content", ["{}", "[]", '{"segments": [1]}', '{"segments": [{}]}', "null", "\x00"])
def test_description_of_another_shape_is_damage(folder, content):
    (folder / "meta.json").write_text(content)
    assert LexicalIndex(folder).open() is None
    assert list(folder.iterdir()) == []


def test_truncated_list_of_managed_files_is_damage(folder, caplog):
    (folder / ".managed.json").write_text('["')
    assert LexicalIndex(folder).open() is None
    assert list(folder.iterdir()) == []


def test_files_of_an_interrupted_commit_do_no_harm(folder):
    (folder / ("0" * 32 + ".store")).write_bytes(b"half a fi")
    segment = json.loads((folder / "meta.json").read_text())["segments"][0]["segment_id"].replace("-", "")
    (folder / f"{segment}.999.del").write_bytes(b"")
    index, version = reopen(folder)
    assert version == 3
    index.close()


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    index = LexicalIndex(tmp_path / "file" / "lexical")
    assert index.open() is None
    with pytest.raises(DataFolderError, match=r"file/lexical: the lexical index cannot be written \("):
        index.rebuild([], 1)


def test_second_writer_on_the_same_folder_is_refused(folder):
    first, _ = reopen(folder)
    first.apply([], [], 4)
    second, _ = reopen(folder)
    with pytest.raises(DataFolderError, match=r"cannot be written \(.*lock"):
        second.apply([], [], 5)
    first.close()
    second.apply([], [], 5)
    second.close()


def test_full_disk_fails_the_write_and_keeps_the_state_before(folder):
    child = start(SMALL_DISK, folder)
    out, _ = child.communicate()
    assert child.returncode == 0
    assert f"{folder}: the lexical index cannot be written" in out
    index, version = reopen(folder)
    assert version == 5
    assert keys_of(index, "apple") == [2]
    index.close()


@pytest.mark.parametrize("seed", range(5))
def test_killed_writer_leaves_a_whole_write_and_its_version(tmp_path, seed):
    folder = tmp_path / "lexical"
    index = LexicalIndex(folder)
    index.rebuild([], 10)
    index.close()
    writer = start(WRITER, folder)
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.5))
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate()
    acknowledged = int((first + rest).rstrip("\n").split("\n")[-1])
    index, version = reopen(folder)
    assert version in (acknowledged, acknowledged + 1)
    assert keys_of(index, "same") == [0, 1, 2]
    assert keys_of(index, f"w{version}") == [0, 1, 2] + [version] * (version % 3 > 0)
    assert keys_of(index, "new") == [number for number in range(11, version + 1) if number % 3]
    write(index, version + 1)
    assert set(keys_of(index, f"w{version + 1}")) >= {0, 1, 2}
    index.close()
