"""Fitting where the truth is known: words that decide, a direction that decides, a signal that decides, noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import TrainingDataError
from engine.evaluation.ambiguity import AmbiguityExamples, AmbiguitySettings, fit_ambiguity
from engine.evaluation.ambiguity_report import naive_bayes
from engine.routing.ambiguity_files import read_ambiguity, write_ambiguity
from engine.routing.signals.table import SignalTable

NUM = 240
NAMES = [f"name{place}" for place in range(NUM)]
QUICK = AmbiguitySettings(num_landmarks=64)


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def truth() -> np.ndarray:
    return drawn().integers(2, size=NUM).astype(np.float64)


def by_words() -> AmbiguityExamples:
    shares = truth()
    questions = [
        f"who plays {name} in the film" if share else f"who wrote {name} first"
        for name, share in zip(NAMES, shares, strict=True)
    ]
    return AmbiguityExamples(questions, shares, NAMES)


def alike(shares: np.ndarray) -> list[str]:
    """Questions that say nothing."""
    return ["what is it"] * len(shares)


def test_words_that_decide_are_learned():
    head, report = fit_ambiguity(by_words(), QUICK)
    assert report.auroc == 1.0
    assert head.probabilities(["who plays someone in the film", "who wrote anything first"]).round().tolist() == [1, 0]
    assert (report.num_questions, report.num_ambiguous) == (NUM, int(truth().sum()))


def test_an_embedding_decides_in_more_ways_than_a_line():
    shares = truth()
    angles = drawn(1).uniform(0, 2 * np.pi, NUM)
    # Ambiguous to the east and to the west: no line through the circle tells them apart.
    angles = np.where(shares == 1, np.round(angles / np.pi) * np.pi, np.round(angles / np.pi) * np.pi + np.pi / 2)
    embeddings = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    examples = AmbiguityExamples(alike(shares), shares, NAMES, embeddings, encoder="e" * 64)
    head, report = fit_ambiguity(examples, QUICK)
    assert report.auroc == 1.0 and report.baseline < 0.6
    assert head.embedding is not None and head.embedding.encoder == "e" * 64


def test_signals_of_the_search_decide_where_a_search_was_made():
    shares = truth()
    spread = np.where(drawn(2).random(NUM) < 0.3, np.nan, shares + drawn(3).normal(scale=0.2, size=NUM))
    table = SignalTable(("search.z_spread", "search.gap"), np.column_stack([spread, np.full(NUM, np.nan)]))
    head, report = fit_ambiguity(AmbiguityExamples(alike(shares), shares, NAMES, signals=table), QUICK)
    assert report.auroc > 0.8
    asked = SignalTable(("search.z_spread",), np.array([[1.0], [0.0], [np.nan]]))
    high, low, unknown = head.probabilities(["what is it"] * 3, signals=asked)
    assert high > unknown > low


def test_noise_is_not_learned_and_its_probabilities_say_so():
    shares = truth()
    questions = [f"tell me {word}" for word in drawn(4).integers(50, size=NUM)]
    head, report = fit_ambiguity(AmbiguityExamples(questions, shares, NAMES), QUICK)
    low, high = report.interval
    assert low < 0.5 < high or report.auroc < 0.5
    assert report.brier_after < 0.26
    assert head.probabilities(questions).std() < 0.15


def test_calibration_of_held_out_scores_lowers_their_error():
    shares = (drawn(5).random(2_000) < 0.5).astype(np.float64)
    says = np.where(drawn(6).random(2_000) < 0.75, shares, 1 - shares)
    questions = [f"{'who plays' if each else 'who wrote'} x{place}" for place, each in enumerate(says)]
    names = [str(place) for place in range(2_000)]
    head, report = fit_ambiguity(AmbiguityExamples(questions, shares, names), AmbiguitySettings(strength=0.5))
    assert report.ece_after < 0.04 < report.ece_before
    assert report.brier_after < report.brier_before
    assert head.probabilities(["who plays y", "who wrote y"]) == pytest.approx([0.75, 0.25], abs=0.05)


def test_annotators_who_disagree_pull_the_probability_to_the_middle():
    shares = np.tile([1.0, 0.5, 0.0], NUM // 3)
    word = {1.0: "yes", 0.5: "maybe", 0.0: "no"}
    examples = AmbiguityExamples([f"{word[share]} please" for share in shares], shares, NAMES)
    head, _ = fit_ambiguity(examples, AmbiguitySettings(strength=200.0))
    assert head.probabilities(["yes please", "maybe please", "no please"]) == pytest.approx([1, 0.5, 0], abs=0.1)


def test_what_a_group_shares_is_not_learned_for_its_own_members():
    # Each group has one name and one answer: by row it would be known, by group it is chance.
    shares = np.repeat(drawn(7).integers(2, size=NUM // 4), 4).astype(np.float64)
    questions = [f"about thing{place // 4}" for place in range(NUM)]
    grouped = AmbiguityExamples(questions, shares, [str(place // 4) for place in range(NUM)])
    _, by_group = fit_ambiguity(grouped, QUICK)
    _, by_row = fit_ambiguity(AmbiguityExamples(questions, shares, NAMES), QUICK)
    assert by_row.auroc > 0.9
    assert by_group.auroc < 0.7


def test_same_examples_give_the_same_files(tmp_path: Path):
    examples = by_words()
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        head, _ = fit_ambiguity(examples, QUICK)
        write_ambiguity(folder, head)
        assert read_ambiguity(folder).probabilities(examples.questions) == pytest.approx(
            head.probabilities(examples.questions)
        )
        files.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert files[0] == files[1]


def test_too_few_questions_or_groups_are_refused():
    examples = by_words()
    few = examples.rows(np.flatnonzero(examples.shares == 0))
    with pytest.raises(TrainingDataError, match=r"0 of \d+ questions have several readings; .* needs 25 of each kind"):
        fit_ambiguity(few, QUICK)
    one_group = AmbiguityExamples(examples.questions, examples.shares, ["a"] * NUM)
    with pytest.raises(TrainingDataError, match="are of 1 groups, 1 of them with ambiguous questions; 5 are needed"):
        fit_ambiguity(one_group, QUICK)
    names = ["all of them" if share else name for share, name in zip(examples.shares, NAMES, strict=True)]
    with pytest.raises(TrainingDataError, match="1 of them with ambiguous questions; 5 are needed and 2 with each"):
        fit_ambiguity(AmbiguityExamples(examples.questions, examples.shares, names), QUICK)


def test_naive_bayes_counts_words_and_pairs():
    likely, unlikely = naive_bayes(["a b", "a b", "b c", "b c"], np.array([1, 1, 0, 0], dtype=bool), ["a b", "b c"])
    # By hand, with one added to every count, tokens a, b, c, "a b", "b c": 3/4 or 1/4 for each of a, c, "a b", "b c".
    assert likely == pytest.approx(4 * np.log(3))
    assert unlikely == pytest.approx(-4 * np.log(3))
