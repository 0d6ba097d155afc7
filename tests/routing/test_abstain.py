"""Weak evidence and what is said of it; the head that judges evidence, and its file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.routing.abstain import REFUSAL, EvidenceHead, nearest_pages, refusal, weakness
from engine.routing.abstain_files import HEAD_FILE, read_evidence_head, write_evidence_head
from engine.routing.ambiguity import SignalPart
from engine.routing.signals.table import SignalTable
from engine.values import Evidence, Passage, ScoreBackground

BACKGROUND = ScoreBackground(mean=0.2, std=0.05, num_questions=64)


def passage(document: str, title: str = "", score: float = 0.5, text: str = "text") -> Passage:
    return Passage(f"{document}#0", document, title, "", text, 0, len(text), score)


def evidence(best: float, background: ScoreBackground | None = BACKGROUND) -> Evidence:
    return Evidence((passage("a.md", "Volumes", best),), background, version=1, similarities=(best, best - 0.1))


def head(threshold: float = 0.5) -> EvidenceHead:
    """Probability sigmoid(2 (best - 0.4) / 0.1); unknown signals speak against."""
    part = SignalPart(
        ("search.best", "search.agreement"),
        np.array([0.4, 0.0]),
        np.array([0.1, 1.0]),
        np.array([1.0, 0.0]),
        np.array([-3.0, 0.0]),
    )
    return EvidenceHead(part, bias=0.0, slope=2.0, offset=0.0, threshold=threshold, encoder="e" * 64)


def test_evidence_is_weak_where_the_best_score_is_like_that_of_unrelated_questions():
    why = weakness("q", evidence(0.3), min_z=2.5)
    assert why is not None and "0.30" in why and "+2.0 standard deviations" in why and "+2.5" in why
    assert weakness("q", evidence(0.33), min_z=2.5) is None


def test_nothing_found_is_weak_and_no_background_says_nothing():
    assert weakness("q", Evidence((), BACKGROUND, 1), min_z=2.5) == "the search found no passage"
    assert weakness("q", evidence(0.0, background=None), min_z=2.5) is None


def test_a_head_decides_in_place_of_the_background():
    assert weakness("q", evidence(0.45), min_z=99.0, head=head()) is None
    why = weakness("q", evidence(0.39), min_z=-99.0, head=head())
    assert why is not None and "0.45 (at least 0.50" in why


def test_a_head_counts_what_is_not_known():
    unknown = SignalTable(("search.best",), np.array([[np.nan], [0.5]]))
    assert head().probabilities(unknown) == pytest.approx([1 / (1 + np.exp(6)), 1 / (1 + np.exp(-2))])


def test_the_refusal_names_the_nearest_pages_by_title_and_id():
    pages = nearest_pages([passage("b", "B"), passage("a", "A"), passage("b", "B"), passage("c"), passage("d", "D")])
    assert [page.document for page in pages] == ["b", "a", "c"]
    assert refusal(pages) == f"{REFUSAL} The nearest pages:\n- B (b)\n- A (a)\n- c"
    assert refusal(()) == REFUSAL


def test_a_title_of_many_lines_is_one_line_of_the_refusal():
    assert refusal([passage("a", "One\n- Two\x1b" + "x" * 200)]).count("\n") == 1


def test_a_head_is_read_as_it_was_written(tmp_path):
    write_evidence_head(tmp_path, head())
    again = read_evidence_head(tmp_path)
    table = SignalTable(("search.best",), np.array([[0.3], [0.44], [np.nan]]))
    assert again.probabilities(table).tolist() == head().probabilities(table).tolist()
    assert (again.threshold, again.encoder, again.signals.names) == (0.5, "e" * 64, head().signals.names)
    first = (tmp_path / HEAD_FILE).read_bytes()
    write_evidence_head(tmp_path, again)
    assert (tmp_path / HEAD_FILE).read_bytes() == first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": [1.0]}, "weights has 1 numbers for 2 signals"),
        ({"signals": ["a", "a"]}, "a name twice"),
        ({"scales": [0.0, 1.0]}, "scales.0"),
        ({"threshold": 1.5}, "threshold"),
        ({"format": 2}, "format"),
        ({"more": 1}, "more"),
    ],
)
def test_a_head_that_is_wrong_is_refused_by_what_is_wrong(tmp_path, changed, message):
    write_evidence_head(tmp_path, head())
    content = json.loads((tmp_path / HEAD_FILE).read_text())
    (tmp_path / HEAD_FILE).write_text(json.dumps(content | changed))
    with pytest.raises(ConfigError, match=message):
        read_evidence_head(tmp_path)


def test_a_missing_head_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"evidence\.json.*router\.abstain\.head"):
        read_evidence_head(tmp_path)


def test_a_head_of_a_higher_threshold_holds_more_for_weak():
    found = evidence(0.45)
    assert weakness("q", found, min_z=0, head=head(0.7)) is None
    assert weakness("q", found, min_z=0, head=replace(head(), threshold=0.9)) is not None
