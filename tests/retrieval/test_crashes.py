"""A writer that is killed at any moment leaves whole writes behind, and all that it had acknowledged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select
from stub_encoder import SETTINGS, StubEncoder

from engine.retrieval import tables
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Query

pytestmark = pytest.mark.chaos

WRITER = """
import sys
from pathlib import Path
from test_crashes import open_store, write_of
retriever = open_store(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 100_000):
    version = retriever.write("docs", write_of(number))[0].version
    print(number, version, flush=True)
"""


def open_store(data: Path) -> Retriever:
    return Retriever(data, StubEncoder(), SETTINGS)


def write_of(number: int) -> list[DocumentWrite]:
    """Replaces the same three documents and adds one; all say the number of the write."""
    body = b"# Write %d\n\n" % number + b"Sentence of write %d. " % number * 40
    return [DocumentWrite(name, body) for name in ("a", "b", "c", f"new/{number}")]


@pytest.mark.parametrize("seed", range(6))
def test_store_is_whole_after_the_writer_is_killed(tmp_path, seed):
    data = tmp_path / "data"
    next_number = 0
    for cycle in range(2):
        command = [sys.executable, "-c", WRITER, str(data), str(next_number)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(random.Random(f"{seed} {cycle}").uniform(0.0, 0.4))
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        acknowledged, version = map(int, (first + rest).rstrip("\n").split("\n")[-1].split())
        next_number = check_whole(data, acknowledged, version) + 1


def check_whole(data: Path, acknowledged: int, version: int) -> int:
    """Number of the last write in the store, after checking that nothing of it is missing."""
    retriever = open_store(data)
    try:
        documents = {row["id"]: row for row in retriever.list_documents("docs", source=None, after=None, limit=10_000)}
        last = max(int(name.removeprefix("new/")) for name in documents if name.startswith("new/"))
        assert last in (acknowledged, acknowledged + 1)
        assert retriever.collection("docs")["version"] == version + (last - acknowledged)
        assert set(documents) == {"a", "b", "c"} | {f"new/{number}" for number in range(last + 1)}
        for name in ("a", "b", "c"):
            assert retriever.get_document("docs", name)["title"] == f"Write {last}"
        (found,) = retriever.evidence([Query(f"write {last}", "docs", 100_000)])
        by_document = {name: sum(p.document == name for p in found.passages) for name in documents}
        assert by_document == {name: row["chunks"] for name, row in documents.items()}
        with retriever._store._engine.connect() as connection:
            used = connection.execute(select(func.count(tables.chunks.c.text_hash.distinct()))).scalar_one()
            assert connection.execute(select(func.count()).select_from(tables.embeddings)).scalar_one() == used
        return last
    finally:
        retriever.close()
