"""`switchyard router collect` against a real server."""

from __future__ import annotations

import json

from click.testing import CliRunner

from engine.cli.main import main
from engine.evaluation.outcome_lines import read_outcomes


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_collect_measures_the_arms_of_a_real_server(server, tmp_path):
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("apples", "pears"):
        (documents / f"{name}.md").write_text(f"# {name}\n\nThe {name} are in the cellar.\n")
    done = run("ingest", documents, "--collection", "collected", "--url", server.url)
    assert done.exit_code == 0, done.output
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"Where are the {name}, {n}?", "answers": ["cellar"]}
        for name in ("apples", "pears")
        for n in (1, 2)
    ]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "outcomes.jsonl"
    done = run(
        *("router", "collect", questions, "--out", out, "--collection", "collected", "--url", server.url),
        *("--arms", "base,base+context", "--max-tokens", "4", "--concurrency", "2", "--embeddings", "--json"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["failed"] == 0
    found = read_outcomes([out])
    assert found.keys.index is not None and found.keys.index.startswith("collected/")
    for each in found.questions:
        assert each.signals["lexical.tokens"] is not None
        assert each.signals["search.documents"] == 2
        assert each.embedding is not None
        direct, rag = each.arms["base"], each.arms["base+context"]
        assert direct.latency_ms and rag.latency_ms and direct.tokens_in and rag.tokens_in
        assert rag.tokens_in > direct.tokens_in
