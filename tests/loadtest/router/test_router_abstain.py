"""The commands that measure abstaining and asking back, on made articles and an encoder that needs no model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from retrieval.stub_encoder import StubEncoder

from engine.retrieval.encoding.protocol import Vectors
from engine.routing.signals.table import SignalTable
from loadtest.router import abstain, clarify
from loadtest.router.abstain import FILE, alone, kept_articles, main, measure, read_squad_questions
from loadtest.router.clarify import measure as measure_clarify
from loadtest.router.clarify import precision_at, read_conversations

NUM_ARTICLES = 14


class Encoder(StubEncoder):
    """Reads as far as the default encoder, and draws the direction of a word once."""

    def __init__(self) -> None:
        super().__init__(max_tokens=512)
        self._drawn: dict[str, Vectors] = {}

    def _direction(self, word: str) -> Vectors:
        if word not in self._drawn:
            self._drawn[word] = super()._direction(word)
        return self._drawn[word]


def squad() -> list[dict]:
    """Six paragraphs an article; each has a question in its own words, and one in words of no paragraph."""
    rows = []
    for article in range(NUM_ARTICLES):
        for place in range(6):
            words = " ".join(f"word{article}x{place}x{n}" for n in range(8))
            questions = [
                {"id": f"a{article}-{place}", "question": f"what is {words}", "answers": [{"text": "x", "start": 0}]},
                {"id": f"u{article}-{place}", "question": f"what is strange{article}x{place}", "unanswerable": True},
            ]
            rows.append(
                {
                    "id": f"Article_{article}#{place}",
                    "article": f"Article_{article}",
                    "context": words,
                    "questions": questions,
                }
            )
    return rows


def conversations() -> list[dict]:
    """Questions "this KIND" are underspecified, "the WORD" are in a passage."""
    rows = []
    for number in range(120):
        is_vague = number % 3 == 0
        text = (
            f"what does this thing do in place{number} noun{number * 7}"
            if is_vague
            else f"what does the item{number} of part{number * 5} do"
        )
        rows.append(
            {
                "collection": "govt" if number % 2 else "fiqa",
                "answerability": "UNDERSPECIFIED" if is_vague else "ANSWERABLE",
                "turns": [{"speaker": "user", "text": text}],
                "contexts": []
                if number % 6 == 0
                else [{"document_id": f"d{number}", "text": f"the item{number} is part{number * 5}"}],
            }
        )
    rows.append(rows[0] | {"answerability": "PARTIAL"})
    return rows


def write(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ({"_provenance": {}}, *rows))


def test_every_second_article_is_kept_whatever_their_order():
    names = [f"Article_{number}" for number in range(7)]
    assert kept_articles(names) == kept_articles(names[::-1])
    assert len(kept_articles(names)) == 4


def test_questions_keep_their_article_and_whether_they_can_be_answered():
    documents, questions = read_squad_questions(squad())
    assert len(documents) == NUM_ARTICLES and all(len(items) == 6 for items in documents.values())
    first = documents["Article_0"][0]
    assert (first.id, first.title) == ("Article_0/0", "Article 0")
    assert [each.is_answerable for each in questions[:4]] == [True, False, True, False]


def test_what_no_paragraph_is_near_is_told_apart_in_both_cases():
    near, absent = measure(squad(), Encoder())
    assert (near.num_questions, near.num_answerable) == (NUM_ARTICLES * 12, NUM_ARTICLES * 6)
    assert (absent.num_questions, absent.num_answerable) == (NUM_ARTICLES * 6, NUM_ARTICLES * 3)
    for case in (near, absent):
        assert case.auroc is not None and case.auroc > 0.99
        assert case.coverage == pytest.approx(0.9, abs=0.1) and case.false_answers == 0
        assert case.false_share_before == 0.5 and case.false_share == 0
        assert case.signals["search.best"] > 0.99
        assert case.bounds["2.5"][0] == 1 and case.bounds["2.5"][1] < 0.3


def test_a_signal_that_is_never_known_has_no_figure():
    table = SignalTable(("a", "b"), np.array([[np.nan, 1.0], [np.nan, np.nan], [np.nan, 0.0]]))
    assert alone(table, np.array([True, False, False])) == {"b": 1.0}


def test_precision_is_of_the_tenth_that_scores_highest():
    truth = np.arange(20) < 3
    assert precision_at(-np.arange(20.0), truth) == 1.0
    assert precision_at(np.arange(20.0), truth) == 0.0
    assert precision_at(np.zeros(15), truth[:15]) == 1.0


def test_underspecified_questions_are_told_apart_by_others_than_they_are():
    encoder = Encoder()
    asked = read_conversations(conversations(), encoder)
    assert len(asked.questions) == 120 and asked.is_underspecified.sum() == 40
    assert asked.has_passages.sum() == 100
    figures = {(one.questions, one.system): one for one in measure_clarify(asked, None, encoder)}
    whole = figures["all", "words, embedding"]
    assert whole.auroc == 1.0 and whole.precision == 1.0 and whole.base_rate == pytest.approx(1 / 3)
    assert figures["with passages", "search"].num_underspecified == 20


def test_the_command_prints_a_table_and_writes_what_it_printed(tmp_path, monkeypatch, capsys):
    write(tmp_path / FILE, squad())
    monkeypatch.setattr(abstain, "default_encoder", Encoder)
    assert main(["--data", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["bench"] == "router_abstain" and [one["case"] for one in written["cases"]] == ["near", "absent"]
    assert "strange" not in (tmp_path / "out.json").read_text(), "figures hold no text"
    assert "search.z_best" in capsys.readouterr().out


@pytest.mark.parametrize("command", [main, clarify.main])
def test_a_run_without_the_data_says_what_is_missing(command, tmp_path, capsys):
    assert command(["--data", str(tmp_path)]) == 0
    assert "skipped: " in capsys.readouterr().out
