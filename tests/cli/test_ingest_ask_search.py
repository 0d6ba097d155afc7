"""ingest, ask and search against the running server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from running_server import SWITCHYARD
from small_files import pdf


@pytest.fixture
def run(server):
    def call(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [SWITCHYARD, *map(str, arguments), "--url", server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture
def pages(tmp_path) -> Path:
    folder = tmp_path / "handbook"
    (folder / "guides").mkdir(parents=True)
    (folder / "index.md").write_text("---\ntitle: Home\n---\n\nWelcome to the handbook.\n")
    (folder / "guides" / "volumes.html.markerb").write_text("# Volumes\n\nVolumes are disks.\n")
    (folder / "page.html").write_text("<title>Page</title><p>Some page.</p>")
    (folder / "logo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("hidden")
    return folder


def test_ingest_adds_skips_updates_and_deletes(run, pages, request):
    collection = request.node.name
    first = json.loads(run("ingest", pages, "--collection", collection, "--json").stdout)
    assert (first["source"], first["created"], first["failed"]) == ("handbook", 3, 0)
    again = json.loads(run("ingest", pages, "--collection", collection, "--json").stdout)
    assert (again["created"], again["unchanged"], again["embedded"]) == (0, 3, 0)
    assert again["version"] == first["version"]
    (pages / "index.md").write_text("---\ntitle: Home\n---\n\nWelcome to the new handbook.\n")
    (pages / "page.html").unlink()
    synced = run("ingest", pages, "--collection", collection, "--sync")
    assert "0 created, 1 updated, 1 unchanged, 1 deleted, 0 failed" in synced.stdout
    assert "1 .png" in synced.stderr
    found = json.loads(run("search", "page", "--collection", collection, "--json").stdout)
    assert {hit["document"] for hit in found["results"][0]} == {
        "handbook/index.md",
        "handbook/guides/volumes.html.markerb",
    }


def test_sync_touches_no_other_source(run, pages, tmp_path, request):
    collection = request.node.name
    other = tmp_path / "blog"
    other.mkdir()
    (other / "post.md").write_text("A post about ships.")
    run("ingest", pages, "--collection", collection)
    run("ingest", other, "--collection", collection, "--source", "blog")
    refused = run("ingest", other, "--collection", collection, "--sync", code=1)
    assert "several sources (blog, handbook); name one with --source" in refused.stderr
    (other / "post.md").unlink()
    (other / "next.md").write_text("A post about trains.")
    synced = json.loads(run("ingest", other, "--collection", collection, "--source", "blog", "--sync", "--json").stdout)
    assert (synced["created"], synced["deleted"]) == (1, 1)
    found = json.loads(run("search", "ships", "--collection", collection, "--k", "20", "--json").stdout)
    assert {hit["document"].split("/")[0] for hit in found["results"][0]} == {"blog", "handbook"}


def test_ingest_reports_bad_files_and_stores_the_others(run, pages, request):
    collection = request.node.name
    (pages / "image.md").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    (pages / "nul.txt").write_bytes(b"a\x00b")
    (pages / "rows.jsonl").write_text('{"id": "r1", "text": "row one"}\n{"id": "r2"}\nnot json\n')
    done = run("ingest", pages, "--collection", collection, "--json", code=1)
    report = json.loads(done.stdout)
    assert (report["created"], report["failed"]) == (4, 4)
    reasons = {failure["id"]: failure["error"] for failure in report["failures"]}
    assert "is not UTF-8 text (byte 0)" in reasons["image.md"]
    assert "handbook/nul.txt" in reasons
    assert "lacks 'text'" in reasons["rows.jsonl:2"]
    assert "4 documents failed; the others are stored" in done.stderr


def test_ingest_reads_pdf_and_tables_and_names_the_files_that_fail(run, pages, request):
    collection = request.node.name
    (pages / "manual.pdf").write_bytes(pdf("The anchor weighs ninety kilograms.", "The mast is tall.", title="Ship"))
    (pages / "scan.pdf").write_bytes(pdf(b""))
    (pages / "broken.docx").write_bytes(b"PK")
    (pages / "prices.csv").write_text("name;price\nrope;4\nsail;90\n")
    (pages / "ragged.tsv").write_text("a\tb\n1\n")
    (pages / "crew.jsonl").write_text('{"id": 1, "name": "Ann", "rank": "mate"}\n{"id": 2, "name": "Ben"}\n')
    done = run("ingest", pages, "--collection", collection, "--json", code=1)
    report = json.loads(done.stdout)
    assert (report["created"], report["failed"]) == (6, 3)
    reasons = {failure["id"]: failure["error"] for failure in report["failures"]}
    assert "Run OCR over it first" in reasons["handbook/scan.pdf"]
    assert "is no readable zip archive" in reasons["handbook/broken.docx"]
    assert "line 2 has 1 cells" in reasons["handbook/ragged.tsv"]
    again = json.loads(run("ingest", pages, "--collection", collection, "--json", code=1).stdout)
    assert (again["unchanged"], again["failed"]) == (6, 3)
    for query, document, heading in (
        ("anchor weighs ninety kilograms", "manual.pdf", "Page 1"),
        ("name: sail price: 90", "prices.csv", "Line 2"),
        ("name: Ann rank: mate", "crew.jsonl", "Line 1"),
    ):
        found = json.loads(run("search", query, "--collection", collection, "--k", "20", "--json").stdout)
        hits = {hit["document"]: hit for hit in found["results"][0]}
        assert hits[f"handbook/{document}"]["text"].startswith(heading)


def test_sync_keeps_what_could_not_be_read(run, pages, request):
    collection = request.node.name
    run("ingest", pages, "--collection", collection)
    (pages / "index.md").write_bytes(b"\xff\xfe broken")
    done = run("ingest", pages, "--collection", collection, "--sync", "--json", code=1)
    assert json.loads(done.stdout)["deleted"] == 0


def test_ingest_in_the_background_names_the_job_that_ends_it(run, server, pages, request):
    collection = request.node.name
    (pages / "manual.pdf").write_bytes(pdf("The anchor weighs ninety kilograms."))
    sent = run("ingest", pages, "--collection", collection, "--background")
    accepted, told, command = sent.stdout.splitlines()
    assert accepted.startswith(f"{collection}/handbook: 4 accepted, 0 unchanged, 0 failed")
    job = told.split()[1]
    assert command == f"  switchyard jobs {job} --follow --url {server.url}"
    followed = run("jobs", job, "--follow")
    assert f"job {job}: done, 4 of 4 done, 0 failed (100%); collection {collection}" in followed.stdout
    found = json.loads(run("search", "anchor kilograms", "--collection", collection, "--json").stdout)
    assert found["results"][0][0]["document"] == "handbook/manual.pdf"
    again = json.loads(run("ingest", pages, "--collection", collection, "--background", "--json").stdout)
    assert (again["accepted"], again["unchanged"], again["job"]) == (0, 4, None)
    listed = [line for line in run("jobs").stdout.splitlines() if job in line]
    assert len(listed) == 1 and "done" in listed[0] and collection in listed[0]


def test_followed_job_shows_its_failing_files_and_ends_with_code_1(run, pages, request):
    collection = request.node.name
    (pages / "scan.pdf").write_bytes(pdf(b""))
    (pages / "broken.docx").write_bytes(b"PK")
    sent = json.loads(run("ingest", pages, "--collection", collection, "--background", "--json").stdout)
    assert (sent["accepted"], sent["failed"]) == (5, 0)
    followed = run("jobs", sent["job"], "--follow", code=1)
    assert "handbook/scan.pdf" in followed.stdout and "Run OCR over it first" in followed.stdout
    assert "handbook/broken.docx" in followed.stdout
    assert "2 documents failed; the others are stored" in followed.stderr
    shown = json.loads(run("jobs", sent["job"], "--json", code=1).stdout)
    assert (shown["state"], shown["done"], shown["failed"]) == ("done", 3, 2)
    assert json.loads(run("jobs", sent["job"], "--cancel", "--json", code=1).stdout) == shown


def test_unknown_job_is_named_with_the_way_to_the_list(run):
    assert "job '0af3' is unknown" in run("jobs", "0af3", code=1).stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "does not exist"),
        (lambda folder: folder, "no documents found"),
        (lambda folder: (folder / "a.png").write_bytes(b"PNG") and folder / "a.png", "type .png is not supported"),
    ],
    ids=["missing", "empty folder", "png"],
)
def test_ingest_names_what_it_cannot_read(run, tmp_path, make, message):
    assert message in run("ingest", make(tmp_path), code=1).stderr


def test_ask_streams_then_prints_what_the_answer_rests_on(run, pages, request):
    collection = request.node.name
    run("ingest", pages, "--collection", collection)
    asked = ("ask", "what are volumes?", "--route", "rag", "--collection", collection, "--max-tokens", "8")
    shown = run(*asked).stdout
    for word in ("route", "rag", "passages", "handbook/", "timings", "tokens"):
        assert word in shown
    answer = json.loads(run(*asked, "--json").stdout)
    assert answer["route"] == "rag"
    assert answer["answer"].strip() in shown


def test_ask_shows_the_server_s_own_words_on_failure(run):
    assert "the last user message is empty" in run("ask", " ", code=1).stderr
    assert "collection 'none' is unknown" in run("ask", "x", "--collection", "none", code=1).stderr
    assert "model 'gpt-5' is unknown" in run("ask", "x", "--model", "gpt-5", code=1).stderr


def test_search_prints_ranked_passages(run, pages, request):
    collection = request.node.name
    run("ingest", pages, "--collection", collection)
    shown = run("search", "volumes are disks", "--collection", collection, "--k", "1").stdout
    assert shown.startswith("1. ") and "Volumes" in shown
