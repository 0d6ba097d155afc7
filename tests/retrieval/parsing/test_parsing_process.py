"""Parsers in processes of their own: what becomes of files that kill them."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
from small_files import docx, pdf

from engine.errors import ComponentUnavailable, UnparsableDocument
from engine.retrieval.parsing.limits import OUT_OF_MEMORY, ParsingLimits
from engine.retrieval.parsing.process import ParserPool
from engine.retrieval.parsing.worker import PARSERS

# A worker that does what the document says, in Python.
WORKER = """
import json, os, sys, time
print(json.dumps({"is_ready": True}), flush=True)
for header in sys.stdin.buffer:
    body = sys.stdin.buffer.read(json.loads(header)["num_bytes"])
    text = "fine"
    exec(body)
    print(json.dumps({"text": text, "title": None, "sections": [], "is_markdown": False}), flush=True)
"""


@pytest.fixture
def open_pool():
    pools = []

    def open_one(**options) -> ParserPool:
        pools.append(ParserPool(**options))
        return pools[-1]

    yield open_one
    for pool in pools:
        pool.close()


@pytest.fixture
def obedient(open_pool):
    """A pool whose documents are the orders that its worker obeys."""
    pool = open_pool(command=(sys.executable, "-c", WORKER), limits=ParsingLimits(timeout_s=1.5))
    return lambda order: pool.parse("any", order.encode()).text


def test_worker_is_used_again(obedient):
    assert obedient("text = str(os.getpid())") == obedient("text = str(os.getpid())")


def test_file_that_takes_too_long_is_stopped_and_the_next_one_is_parsed(obedient):
    with pytest.raises(UnparsableDocument, match=r"took longer than 1.5 s and was stopped\. Split the file"):
        obedient("time.sleep(60)")
    assert obedient("") == "fine"


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (f"os._exit({OUT_OF_MEMORY})", "needs more than 1024 MiB of memory"),
        ("os.kill(os.getpid(), 11)", r"died of this file \(exit status -11\)"),
        ("print('no json', flush=True); sys.exit()", r"died of this file \(exit status 0\)"),
        ("os.close(1); sys.exit()", "died of this file"),
    ],
    ids=["memory", "crash", "garbage", "silence"],
)
def test_file_that_kills_its_parser_is_refused_and_the_next_one_is_parsed(obedient, order, message):
    with pytest.raises(UnparsableDocument, match=message):
        obedient(order)
    assert obedient("") == "fine"


def test_worker_that_died_while_idle_costs_no_document(obedient):
    pid = int(obedient("text = str(os.getpid())"))
    os.kill(pid, 9)
    assert obedient("") == "fine"


def test_worker_that_dies_of_what_came_before_gets_the_document_parsed_by_another(obedient):
    # It obeys once more, then dies in front of the innocent document.
    obedient("import builtins; builtins.exec = lambda body: os._exit(7)")
    assert obedient("") == "fine"


def test_at_most_size_workers_run_and_all_documents_are_parsed(open_pool):
    pool = open_pool(size=2, command=(sys.executable, "-c", WORKER))
    pids = []
    threads = [
        threading.Thread(target=lambda: pids.append(pool.parse("any", b"text = str(os.getpid())").text))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 12
    assert len(set(pids)) <= 2


def test_worker_that_does_not_start_is_the_servers_trouble_not_the_files(open_pool):
    for command in ((sys.executable, "-c", "import sys; sys.exit(4)"), ("/nonexistent/python",)):
        with pytest.raises(ComponentUnavailable, match="document parser is unavailable"):
            open_pool(command=command).parse("pdf", b"")


def test_parser_sees_neither_keys_of_the_environment_nor_the_users_folder(open_pool, monkeypatch, tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise SystemExit('the wrong engine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWITCHYARD_API_KEY", "secret")
    assert open_pool().parse("csv", b"a\n1\n").text == "Line 2\na: 1"
    pool = open_pool(command=(sys.executable, "-c", WORKER))
    assert "SWITCHYARD_API_KEY" not in json.loads(pool.parse("any", b"text = json.dumps(dict(os.environ))").text)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_memory_of_a_worker_is_limited(open_pool):
    pool = open_pool(limits=ParsingLimits(max_memory_bytes=96 * 2**20))
    with pytest.raises(UnparsableDocument, match="needs more than 96 MiB of memory"):
        pool.parse("jsonl", b'{"a": [' + b"[]," * 1_000_000 + b"[]]}")
    assert pool.parse("jsonl", b'{"a": 1}').text == "Line 1\na: 1"


def test_documents_larger_than_a_pipe_come_and_go_whole(open_pool):
    body = b"a,b\n" + b"".join(b"%d,%s\n" % (i, b"x" * 100) for i in range(20_000))
    document = open_pool().parse("csv", body)
    assert len(document.sections) == 20_000
    assert document.text.endswith("a: 19999\nb: " + "x" * 100)


def test_close_ends_every_worker(open_pool):
    pool = open_pool(command=(sys.executable, "-c", WORKER))
    pid = int(pool.parse("any", b"text = str(os.getpid())").text)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("parser", sorted(PARSERS))
def test_every_parser_answers_a_file_of_another_format_with_a_refusal_or_text(open_pool, parser):
    pool = open_pool()
    for body in (pdf("text"), docx("text"), b'{"a": 1}', b"\xff\xfe\x00", b""):
        try:
            pool.parse(parser, body).text.encode()
        except UnparsableDocument as error:
            assert "\n" not in str(error)
