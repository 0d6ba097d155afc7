"""`switchyard router feedback` against a running server."""

from __future__ import annotations

import json

import httpx
from click.testing import CliRunner

from engine.cli.main import main


def test_feedback_is_exported_as_json_lines(server, tmp_path):
    chat = {"model": "auto", "messages": [{"role": "user", "content": "how?"}], "max_tokens": 2}
    chat["switchyard"] = {"route": "direct"}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=60).json()["id"]
    said = httpx.post(f"{server.url}/v1/feedback", json={"id": response, "score": 0.5}, timeout=60)
    assert said.status_code == 200, said.text
    file = tmp_path / "feedback.jsonl"
    done = CliRunner().invoke(main, ["router", "feedback", "--url", server.url, "--out", str(file)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert f"{len(rows)} ratings in {file}" in done.stdout
    (row,) = [row for row in rows if row["id"] == response]
    assert (row["score"], row["arm"]) == (0.5, "base")
    shown = CliRunner().invoke(main, ["router", "feedback", "--url", server.url])
    assert [json.loads(line) for line in shown.stdout.splitlines()] == rows


def test_feedback_that_cannot_be_written_names_the_file(server, tmp_path):
    file = tmp_path / "no-folder" / "feedback.jsonl"
    done = CliRunner().invoke(main, ["router", "feedback", "--url", server.url, "--out", str(file)])
    assert done.exit_code == 1 and "Name another file" in done.output
