"""`switchyard tune` beside the running server: passages from its index, and the adapter loaded by it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from running_server import Server
from tuning.tuning_files import labelled, write_rows

from engine.cli.main import main
from engine.tuning.outcome import outcome_from_json
from engine.tuning.run.making import PASSAGES_FILE

COLLECTION = "tune-served"
TOPICS = ("volume", "invoice", "password", "snapshot", "ticket")


@pytest.fixture
def tune(server: Server, tiny_models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    model = tiny_models[1].removeprefix("generator.model=")

    def call(name: str, *arguments: object) -> Result:
        options = ("--name", name, "--model", model, "--data", server.data, "--url", server.url, "--epochs", 1)
        done = CliRunner().invoke(main, ["tune", *map(str, (*options, *arguments))])
        assert done.exit_code == 0, done.output
        return done

    yield call
    for name in ("tuned-labels", "tuned-answers"):
        httpx.delete(f"{server.url}/v1/adapters/{name}", params={"files": True}, timeout=60)


def test_adapter_is_loaded_by_the_server_that_uses_the_data_folder(server: Server, tune, tmp_path: Path):
    done = tune("tuned-labels", write_rows(tmp_path / "data.jsonl", labelled(60)))
    assert f"tuned-labels: loaded by {server.url}" in done.stdout
    cards = httpx.get(f"{server.url}/v1/adapters", timeout=60).json()["data"]
    assert [card["loaded"] for card in cards if card["name"] == "tuned-labels"] == [True]


def test_questions_are_trained_with_passages_of_the_index(server: Server, tune, tmp_path: Path):
    rows = []
    for number in range(50):
        topic = TOPICS[number % 5]
        document = f"guide/{topic}-{number}.md"
        text = f"# About {topic} {number}\n\nThe {topic} {number} is kept for {number + 3} days in room {number * 7}."
        path = f"{server.url}/v1/collections/{COLLECTION}/documents/{document}"
        httpx.put(path, json={"text": text}, timeout=60).raise_for_status()
        question = f"How many days is {topic} number {number} kept in room {number * 7}?"
        rows.append({"question": question, "answers": [f"{number + 3} days"], "document": document})
    data = write_rows(tmp_path / "data.jsonl", rows)
    tune("tuned-answers", data, "--context", "retrieved", "--collection", COLLECTION, "--no-load", "--force")
    folder = server.data / "tuning" / "tuned-answers"
    outcome = outcome_from_json(json.loads((folder / "result.json").read_text()))
    assert outcome.context == "retrieved"
    kept = json.loads((folder / PASSAGES_FILE).read_text())
    assert set(kept["found"]) == {row["question"] for row in rows}
    # Three are shown, three more are there to take the place of golden ones; headings are as prompts show them.
    assert {len(chunks) for chunks in kept["found"].values()} == {6}
    assert all(each["heading"].startswith("About ") for each in kept["chunks"].values())
