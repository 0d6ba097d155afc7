"""What the examples ship is fit to be used, and their scripts make what they say."""

from __future__ import annotations

import csv
import gzip
import json
import runpy
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from engine.config import GeneratorSettings
from engine.generation.adapters.inputs import read_inputs
from engine.generation.adapters.inspection import inspect_adapter
from engine.generation.adapters.manifest import parse_manifest
from engine.generation.adapters.registry import AdapterRegistry
from engine.tuning.data.examples import read_examples
from engine.tuning.guard.inspect import inspect

EXAMPLES = Path(__file__).parents[1] / "examples"
BANKING = EXAMPLES / "banking77"
ADAPTER = EXAMPLES / "adapters" / "banking77"


def run(monkeypatch, script: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def rows_of(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_banking77_example_passes_the_guard_and_leaks_nothing():
    train = read_examples(BANKING / "train.jsonl")
    evaluation = read_examples(BANKING / "eval.jsonl", labels=train.labels)
    report = inspect(train, evaluation=evaluation, seed=0).report
    assert report.verdict == "ok"
    assert not report.findings
    assert (report.leakage.num_exact, report.leakage.num_near) == (0, 0)
    assert set(Counter(row.label for row in train.rows).values()) == {40}
    assert set(Counter(row.label for row in evaluation.rows).values()) == {20}
    assert len(train.labels) == 10


def test_banking77_example_names_source_and_licence_in_both_files():
    for name in ("train.jsonl", "eval.jsonl"):
        provenance = read_examples(BANKING / name, labels=None).provenance
        assert provenance["licence"] == "CC BY 4.0"
        assert "Casanueva" in provenance["attribution"]
        assert provenance["rows"] == len(rows_of(BANKING / name)) - 1


def test_adapter_that_ships_is_whole_small_and_of_the_default_generator(tmp_path):
    registry = AdapterRegistry(tmp_path)
    added = registry.locate("banking77", version=registry.add("banking77", ADAPTER))
    info, contents = inspect_adapter(added, "banking77", model_digest="", max_rank=GeneratorSettings().max_adapter_rank)
    assert len(contents["adapter_model.safetensors"]) < 6_000_000 and sum(map(len, contents.values())) < 9_000_000
    assert (info.rank, info.base_model, len(info.targets)) == (8, "smollm2-135m-instruct", 7)
    assert (info.manifest.task, len(info.manifest.labels), info.manifest.verdict) == ("classify", 77, "ok")
    inputs = read_inputs(added, info.manifest, "banking77")
    assert inputs is not None and inputs.embeddings.shape == (4096, 384)


def test_adapter_that_ships_names_source_licences_and_the_models_that_are_as_good():
    text = (ADAPTER / "README.md").read_text(encoding="utf-8")
    for part in ("CC BY 4.0", "Casanueva", "Apache-2.0", "logistic regression", "is the better choice"):
        assert part in text
    labels = {label.name for label in parse_manifest((ADAPTER / "switchyard.json").read_bytes(), "banking77").labels}
    assert labels > set(read_examples(BANKING / "train.jsonl").labels)


def test_subset_of_banking77_is_the_same_whatever_the_order_and_format_of_the_file(tmp_path, monkeypatch):
    subset = runpy.run_path(str(BANKING / "make_subset.py"))
    rows = [
        (sha256(f"{number} {intent}".encode()).hexdigest(), intent)
        for intent in subset["INTENTS"]
        for number in range(70)
    ]
    rows += [("not among the ten", "age_limit")]
    table, lines = tmp_path / "train.csv", tmp_path / "train.jsonl.gz"
    with table.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "category"), *rows])
    content = "\n".join(json.dumps({"text": text, "label": label}) for text, label in reversed(rows))
    lines.write_bytes(gzip.compress(content.encode()))
    written = []
    for file in (table, lines):
        folder = tmp_path / file.suffix
        folder.mkdir()
        run(monkeypatch, "banking77/make_subset.py", file, "--to", folder)
        written.append([(folder / name).read_text() for name in ("train.jsonl", "eval.jsonl")])
    assert written[0] == written[1]
    texts = [row["text"] for row in rows_of(folder / "train.jsonl")[1:] + rows_of(folder / "eval.jsonl")[1:]]
    assert len(texts) == len(set(texts)) == 600


def test_subset_of_too_small_a_file_is_refused_by_label(tmp_path, monkeypatch):
    file = tmp_path / "train.csv"
    file.write_text("text,category\nwhere is it,card_arrival\n")
    with pytest.raises(SystemExit, match="activate_my_card: 0 different rows, needed are 60"):
        run(monkeypatch, "banking77/make_subset.py", file)


QUESTIONS = [
    {"id": "1", "question": " How tall? ", "answers": [{"text": "330 m"}, {"text": "330 m"}, {"text": "330 metres"}]},
    {"id": "2", "question": "Who sold it?", "answers": [], "is_impossible": True},
]


@pytest.mark.parametrize("is_official", [True, False])
def test_squad_becomes_rows_and_documents(tmp_path, monkeypatch, is_official):
    paragraph = {"context": "It is 330 m tall."}
    official = {"data": [{"title": "Eiffel_Tower", "paragraphs": [paragraph | {"qas": QUESTIONS}]}]}
    line = paragraph | {"article": "Eiffel_Tower", "questions": QUESTIONS}
    file, to, documents = tmp_path / "squad.json", tmp_path / "rows.jsonl", tmp_path / "documents.jsonl"
    provenance = json.dumps({"_provenance": {"dataset": "SQuAD"}})
    file.write_text(json.dumps(official) if is_official else f"{provenance}\n{json.dumps(line)}\n")
    run(monkeypatch, "recipes/squad.py", file, to, "--documents", documents)
    answered, unanswerable = read_examples(to).rows
    assert (answered.question, answered.answers) == ("How tall?", ("330 m", "330 metres"))
    assert (answered.context, answered.group) == ("It is 330 m tall.", "Eiffel_Tower")
    assert unanswerable.answers == ()
    name = sha256(b"It is 330 m tall.").hexdigest()[:16]
    assert rows_of(documents) == [{"id": name, "title": "Eiffel Tower", "text": "It is 330 m tall."}]
    run(monkeypatch, "recipes/squad.py", file, to, "--questions", 1)
    assert len(read_examples(to).rows) == 1


def test_phrasebank_becomes_rows_evaluation_and_exceptions(tmp_path, monkeypatch):
    sentences = [f"Sales of product {chr(97 + number)} grew .@positive" for number in range(26)]
    sentences += [
        "The loss was not d\xe9clared .@neutral",
        "Profit fell to 3 mn from 5 mn .@negative",
        "Two labels .@neutral",
        "Two labels .@positive",
    ]
    file = tmp_path / "Sentences_50Agree.txt"
    file.write_text("\n".join(sentences), encoding="latin-1")
    run(monkeypatch, "recipes/phrasebank.py", file, "--to", tmp_path / "out", "--hold-out", "0.2")
    files = {name: rows_of(tmp_path / "out" / f"{name}.jsonl") for name in ("rows", "eval", "exceptions")}
    texts = [row["text"] for rows in files.values() for row in rows]
    assert len(texts) == len(set(texts)) == 28
    assert files["eval"] and len(files["rows"]) > 15
    run(monkeypatch, "recipes/phrasebank.py", file, "--to", tmp_path / "out", "--hold-out", "0")
    assert rows_of(tmp_path / "out" / "exceptions.jsonl") == [
        {"text": "The loss was not déclared .", "label": "neutral"},
        {"text": "Profit fell to 3 mn from 5 mn .", "label": "negative"},
    ]
