"""A comparison against the real application: documents come back as they were, and every arm answers."""

from __future__ import annotations

import httpx
import pytest

from engine.api.app import create_app
from engine.evaluation.asking import Server
from engine.evaluation.compare.documents import SCRATCH, changed, read_document, restorable
from engine.evaluation.compare.job import CompareJob
from engine.evaluation.compare.report import write_report
from engine.evaluation.compare.running import run_comparison
from engine.evaluation.compare.updating import Update
from engine.evaluation.questions import Question

PAGE = "<html><title>Pricing</title><body><h1>Pricing</h1><p>Machines cost <b>money</b>.</p></body></html>"
BODIES = [
    (
        "text/markdown",
        "---\ntitle: Volumes\n---\n\n# Volumes\n\nVolumes are disks.\n\n\n## Size\n\n- small\n- large\n\n",
    ),
    ("text/markdown", "No heading.\r\nTwo lines <b>here</b> &amp; there.\n\n```sh\n# not a heading\n```\n"),
    ("text/plain", "# not a heading\n\n  indented\n\n\n\nend\n"),
    ("text/html", PAGE),
    ("text/csv", "name;price\nrope;4\nsail;90\n"),
    ("text/markdown", "\n\n".join(f"## Part {n}\n\n" + f"Sentence {n} of many words. " * 60 for n in range(6))),
]


@pytest.fixture
async def server(backends, config):
    transport = httpx.ASGITransport(app=create_app(backends, config), raise_app_exceptions=False)
    async with Server("http://test", transport=transport) as server:
        yield server


async def put(server, id, content_type, body):
    headers = {"Content-Type": content_type}
    await server.call("PUT", f"/v1/collections/default/documents/{id}", content=body.encode(), headers=headers)


async def search(server, query):
    body = {"query": query, "k": 20}
    return [
        (hit["document"], hit["text"]) for hit in (await server.call("POST", "/v1/search", json=body))["results"][0]
    ]


@pytest.mark.parametrize(("content_type", "body"), BODIES)
async def test_a_changed_document_comes_back_with_the_same_passages(server, tmp_path, content_type, body):
    await put(server, "docs/a", content_type, body)
    before, found = await read_document(server, "default", "docs/a"), await search(server, "volumes")
    async with changed(server, await restorable(server, before), "Something else.", tmp_path):
        assert await search(server, "volumes") == [("docs/a", "Something else.")]
    assert await read_document(server, "default", "docs/a") == before
    assert await search(server, "volumes") == found
    scratch = await server.call("GET", f"/v1/collections/{SCRATCH}/documents")
    assert scratch["documents"] == []


async def test_every_arm_of_the_real_application_is_compared(server, tmp_path):
    for number in range(4):
        await put(server, f"docs/{number}", "text/markdown", f"# Page {number}\n\nThe code of {number} is {number}7.")
    questions = tuple(
        Question(f"q{n}", f"What is the code of {n}?", (f"{n}7",), documents=(f"docs/{n}",)) for n in range(4)
    )
    update = Update(
        id="docs/1",
        text="The code of 1 is 99.",
        question="What is the code of 1?",
        answer_before="17",
        answer_after="99",
    )
    job = CompareJob(
        "q.jsonl", "2026-01-01T00:00:00+00:00", questions, tmp_path, tmp_path, max_tokens=4, updates=(update,)
    )
    found = await run_comparison(job, server)
    assert [each.name for each in found.comparison.arms] == ["base", "base+context", "auto"]
    arm = found.comparison.arm("base+context")
    assert arm.num_failed == 0 and arm.passages == 1.0 and arm.ttft_ms > 0 and arm.tokens_in > 0
    assert found.comparison.arm("base").passages == 0.0
    assert found.comparison.search.num_rows == 4 and arm.hits.by_documents
    assert found.comparison.refresh.num_chunks == 1
    assert found.comparison.updates_skipped == ()
    assert "17" in (await read_document(server, "default", "docs/1")).text
    assert "</html>" in write_report(found, tmp_path).read_text()
