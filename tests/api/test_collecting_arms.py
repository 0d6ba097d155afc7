"""Outcomes collected from the real application: what it answers is what collecting reads."""

from __future__ import annotations

import httpx
import pytest

from engine.api.app import create_app
from engine.errors import SwitchyardError
from engine.evaluation.asking import Server
from engine.evaluation.collecting import CollectOptions, collect
from engine.evaluation.outcome_lines import read_outcomes
from engine.evaluation.outcomes import write_outcomes
from engine.evaluation.questions import Question

QUESTIONS = tuple(Question(f"q{number}", f"Where are the pears, {number}?", ("cellar",)) for number in range(3))
OPTIONS = CollectOptions(concurrency=2, max_tokens=4, collection="fruit", with_embeddings=True)


@pytest.fixture
async def server(backends, config, client):
    for name in ("apples", "pears"):
        done = await client.put(
            f"/v1/collections/fruit/documents/{name}.md", json={"text": f"# {name}\n\nThe {name} are in the cellar."}
        )
        assert done.status_code == 200, done.text
    async with Server("http://test", transport=httpx.ASGITransport(app=create_app(backends, config))) as server:
        yield server


async def test_every_arm_is_measured_and_the_file_can_be_read(server, tmp_path):
    outcomes = await collect(server, QUESTIONS, OPTIONS, tmp_path / "work")
    write_outcomes(outcomes, tmp_path / "out.jsonl")
    found = read_outcomes([tmp_path / "out.jsonl"])
    assert found.arms == ("base", "base+context")
    assert found.keys.index is not None and found.keys.index.startswith("fruit/")
    for each in found.questions:
        assert each.signals["lexical.tokens"] is not None
        assert each.signals["search.documents"] == 2
        assert each.embedding is not None
        direct, rag = each.arms["base"], each.arms["base+context"]
        assert direct.error is None and rag.error is None
        assert direct.latency_ms and rag.latency_ms and direct.tokens_in and rag.tokens_in
        assert rag.tokens_in > direct.tokens_in


async def test_document_that_changes_between_two_calls_is_noticed(server, client, tmp_path):
    await collect(server, QUESTIONS, OPTIONS, tmp_path / "work")
    # As a call that was stopped before one of its answers with passages.
    lines = (tmp_path / "work").read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if '"arm": "base+context"' in line)
    (tmp_path / "work").write_text("".join(lines[:place] + lines[place + 1 :]))
    await client.put("/v1/collections/fruit/documents/apples.md", json={"text": "# apples\n\nThey are sold."})
    with pytest.raises(SwitchyardError, match="the documents changed: version"):
        await collect(server, QUESTIONS, OPTIONS, tmp_path / "work")
