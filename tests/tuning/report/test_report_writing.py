"""The report as files: whole for every task, whatever is missing or hostile, and the same each time."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_outcome import (
    LABELS,
    answered,
    baseline_of,
    evaluation_of,
    full_outcome,
    history,
    labelled,
    outcome_of,
    run_of,
)

from engine.errors import ConfigError, SwitchyardError
from engine.tuning.data.examples import read_examples
from engine.tuning.guard.inspect import inspect
from engine.tuning.outcome import Answer, Prediction, outcome_from_json
from engine.tuning.report.writing import write_report

VOID = {"meta", "br", "wbr"}
# What inline SVG may name without anything being fetched.
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)></style></title> $x^2$ &amp; \u202eabc\x00\x1b"


class Document(HTMLParser):
    """A document whose elements are closed in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.targets: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.names[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value] += 1
            if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
                self.targets.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def report(outcome, folder: Path) -> tuple[Document, dict]:
    path = write_report(outcome, folder)
    content = path.read_text(encoding="utf-8")
    found = Document(path)
    assert not found.names.keys() & {"script", "img", "iframe", "link", "object", "embed", "base", "form"}
    assert not found.handlers
    assert all(target.startswith("#") and target[1:] in found.ids for target in found.targets)
    assert [name for name, count in found.ids.items() if count > 1] == []
    assert set(re.findall(r"https?://[^\"'\s<>)]+", content)) <= NAMESPACES
    assert "@import" not in content
    return found, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def sections(document: Document) -> set[str]:
    return {identifier for identifier in document.ids if f"{identifier}-title" in document.ids}


def test_report_of_a_full_run_has_every_section_and_figure(tmp_path):
    found, content = report(full_outcome(), tmp_path / "made" / "new")
    assert sections(found) == {
        *("models", "learning", "curve", "exceptions", "confusion", "labels", "calibration", "samples", "guard", "run")
    }
    assert found.names["svg"] == 5
    for said in (
        "It learned the task: accuracy 0.750 on 60 evaluation rows, where the base model has 0.333.",
        *("TF-IDF + LR", "kept: step 20", "Overfitting was seen", "12 rows of edge.jsonl", "temperature 1.500"),
        *("Few rows.", "risky", "1.0 GiB", "2.0 GiB", "1,234 tokens/s", "a" * 64, "cosine", "2026-01-02 03:04 UTC"),
        *("15 of 60 evaluation rows are wrong", "The last step, 1.5 times the rows, changed accuracy by +0.300"),
    ):
        assert said in found.text, found.text[-900:]
    assert content["verdict"]["code"] == "learned"
    assert content["learning"] == {
        "kept_step": 20,
        "kept_gap": pytest.approx(-0.1),
        "last_gap": pytest.approx(1.45),
        "is_overfit": True,
    }
    assert {each["label"] for each in content["labels"]} == set(LABELS)
    assert sum(each["rows"] for each in content["confused"]) == 15
    assert [each["name"] for each in content["comparisons"]] == ["base model", "TF-IDF + LR"]


def test_report_json_leaves_out_the_rows_of_the_user(tmp_path):
    _, content = report(full_outcome(), tmp_path)
    assert "text 0" not in json.dumps(content)
    assert [each["num_predicted"] for each in content["outcome"]["evaluations"]] == [40, 60]


@pytest.mark.parametrize("task", ["qa", "chat"])
def test_report_of_answers_has_neither_labels_nor_confidence(tmp_path, task):
    outcome = outcome_of(answered([(0.1, 0.8), (0.5, 0.2)] * 20), task=task, context="gold" if task == "qa" else "none")
    found, content = report(outcome, tmp_path)
    assert sections(found) == {"models", "learning", "samples", "guard", "run"}
    assert "token F1" in found.text and "score 0.80" in found.text
    assert ("context in prompts" in found.text) is (task == "qa")
    assert "labels" not in content


@pytest.mark.parametrize(
    "outcome",
    [
        outcome_of(),
        outcome_of(guard={}),
        outcome_of(guard={"verdict": "refuse", "findings": [{}], "data": 3}, is_forced=True),
        outcome_of(run=run_of(())),
        outcome_of(run=run_of(history((1.0, 1.0)))),
        outcome_of(run=run_of(history((1.0, 1.0), (1.0, 1.0), metrics=(0.5, 0.5)), stopped="patience")),
        outcome_of(labelled([True])),
        outcome_of(labelled([True] * 40)),
        outcome_of(replace(labelled([True] * 40), slices=())),
        outcome_of(evaluation_of([], "accuracy", "validation")),
        outcome_of(answered([(0.0, 0.0)] * 40), task="chat"),
        replace(full_outcome(), evaluations=(), baselines=()),
        replace(full_outcome(), curve=full_outcome().curve[:1], num_train=30),
    ],
    ids=lambda outcome: outcome.task,
)  # fmt: skip
def test_report_is_whole_whatever_is_missing(tmp_path, outcome):
    found, content = report(outcome, tmp_path)
    assert {"learning", "guard", "run"} <= sections(found)
    assert content["verdict"]["headline"] in found.text


def test_hostile_texts_stay_texts(tmp_path):
    rows = [
        Prediction(
            place, f"{HOSTILE} {place}", (HOSTILE if place % 2 else "b",),
            Answer("b", float(place % 2 == 0), 0.5, 0.7, 0.6), Answer(HOSTILE, 0.0, 0.5, 0.7, 0.6),
        )
        for place in range(40)
    ]  # fmt: skip
    evaluation = replace(evaluation_of(rows, "accuracy", "evaluation"), source=f"/tmp/{HOSTILE}")
    finding = {"level": HOSTILE, "reason": HOSTILE, "fix": HOSTILE}
    outcome = outcome_of(
        evaluation,
        name=HOSTILE, metric=HOSTILE, created=HOSTILE, base_model=HOSTILE, base_digest=HOSTILE, adapter_digest=HOSTILE,
        data_source=HOSTILE, data_digest=HOSTILE, instruction=HOSTILE, labels=(HOSTILE, "b"), exceptions_source=HOSTILE,
        guard={"verdict": HOSTILE, "findings": [finding]},
        run=run_of(history((1.0, 1.0), (0.5, 0.6), metrics=(0.5, 0.6)), settings={HOSTILE: HOSTILE}, device=HOSTILE),
        baselines=(replace(baseline_of(evaluation, [True] * 40), name=HOSTILE),),
    )  # fmt: skip
    found, _ = report(outcome, tmp_path)
    assert found.text.count("<script>alert(1)</script>") > 20
    assert "\x00" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_shows_what_the_guard_measured(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"text number {n}", "label": "ab"[n % 2]}) for n in range(60)))
    guard = inspect(read_examples(data), seed=0).report.to_json()
    found, _ = report(full_outcome(guard), tmp_path / "report")
    for said in ("60 used, 0 bad", "30 rows (50.00 %)", " near; ", "What it measured"):
        assert said in found.text, said


def test_same_outcome_gives_the_same_files_after_json_too(tmp_path):
    outcome = full_outcome()
    write_report(outcome, tmp_path / "one")
    write_report(outcome_from_json(outcome.to_json()), tmp_path / "two")
    for name in ("report.html", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_pictures_take_their_colours_from_the_page(tmp_path):
    content = write_report(full_outcome(), tmp_path).read_text(encoding="utf-8")
    assert "var(--first)" in content and "var(--second)" in content
    assert "#0102" not in content
    assert not re.search(r"(?:fill|stroke): #(?!000000)", content[content.index("<main>") :])


def test_missing_matplotlib_is_said_with_the_extra_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib.*pip install 'switchyard\[tune\]'"):
        write_report(full_outcome(), tmp_path)


def test_folder_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SwitchyardError, match="file: the report cannot be written"):
        write_report(full_outcome(), tmp_path / "file")
