"""Token counts, label balance and diversity against values worked out by hand or in another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from engine.tuning.data.rows import ChatRow, LabelRow, QuestionRow
from engine.tuning.guard.counts import Lengths, label_balance, token_counts
from engine.tuning.guard.diversity import WINDOW_WORDS, distinct_words, mean_overlap, self_similarity
from engine.values import Message


def count_words(texts):
    return [len(text.split()) for text in texts]


def test_tokens_are_counted_by_the_callable_over_all_that_the_model_reads():
    rows = [
        QuestionRow(1, "How tall?", ("330 metres",), context="It is 330 metres tall."),
        ChatRow(2, (Message("system", "Be kind"), Message("user", "Hi"), Message("assistant", "Hello to you"))),
    ]
    counts = token_counts(rows, count_words, 8, 20)
    assert counts.inputs == Lengths(total=10, p50=3, p95=7, most=7)
    assert counts.targets == Lengths(total=5, p50=2, p95=3, most=3)
    assert (counts.num_too_long, counts.too_long_lines) == (1, (1,))


def test_tokens_of_many_rows_are_asked_for_in_parts():
    asked = []

    def count(texts):
        asked.append(len(texts))
        return count_words(texts)

    rows = [LabelRow(i, "two words", "a") for i in range(2_500)]
    assert token_counts(rows, count, None, 20).inputs.total == 5_000
    assert max(asked) <= 1_000


def test_label_balance_counts_rows_and_distinct_ones_and_says_how_many_labels_it_amounts_to():
    rows = [LabelRow(i, f"t{i}", label) for i, label in enumerate("aaabbc")]
    balance = label_balance(rows, [0, 0, 2, 3, 4, 5])
    assert balance is not None
    assert balance.counts == {"a": 3, "b": 2, "c": 1}
    assert balance.distinct == {"a": 2, "b": 2, "c": 1}
    assert (balance.rarest, balance.most_frequent) == ("c", "a")
    assert balance.rarest_share == pytest.approx(1 / 6)
    entropy = -sum(share * math.log(share) for share in (1 / 2, 1 / 3, 1 / 6))
    assert balance.effective_labels == pytest.approx(math.exp(entropy))


def test_equal_labels_are_as_hard_to_guess_as_their_number():
    rows = [LabelRow(i, f"t{i}", str(i % 7)) for i in range(70)]
    balance = label_balance(rows, range(70))
    assert balance is not None
    assert balance.effective_labels == pytest.approx(7)


def test_distinct_shares_count_words_and_pairs_within_texts():
    found = distinct_words(["the red card", "The red bus!"], seed=0)
    assert found is not None
    assert found.distinct_1 == pytest.approx(4 / 6)
    # `card the` is no pair: it crosses from one text to the next.
    assert found.distinct_2 == pytest.approx(3 / 4)
    assert distinct_words([], seed=0) is None


def test_distinct_shares_do_not_fall_with_the_number_of_rows():
    words = [f"w{i}" for i in range(WINDOW_WORDS)]
    once, often = distinct_words([" ".join(words)], seed=0), distinct_words([" ".join(words)] * 5, seed=0)
    assert once is not None
    assert often is not None
    assert once.distinct_1 == often.distinct_1 == 1


def test_mean_overlap_is_the_mean_jaccard_of_all_pairs():
    texts = ["where is my card", "where is my transfer", "close the account", "where is my card now"]

    def pieces(text):
        return {text[i : i + 5] for i in range(len(text) - 4)}

    pairs = [(pieces(one), pieces(other)) for one, other in itertools.combinations(texts, 2)]
    expected = sum(len(one & other) / len(one | other) for one, other in pairs) / len(pairs)
    assert mean_overlap(texts, seed=0) == pytest.approx(expected)
    assert mean_overlap(["one"], seed=0) is None


def test_overlap_of_inputs_without_anything_in_common_is_zero():
    assert mean_overlap(["aaaaaaa", "bbbbbbb"], seed=0) == 0


def embed(texts):
    """Three directions by the first letter, not normalised."""
    return np.array([3.0 * np.eye(3)["abc".index(text[0])] for text in texts], np.float32)


def test_self_similarity_counts_how_many_different_texts_there_are():
    same = self_similarity(["a1", "a2", "a3"], embed, seed=0)
    different = self_similarity(["a", "b", "c"], embed, seed=0)
    assert same is not None
    assert different is not None
    assert (same.mean, same.nearest, same.share_near) == pytest.approx((1, 1, 1))
    assert same.vendi == pytest.approx(1)
    assert (different.mean, different.nearest, different.share_near) == pytest.approx((0, 0, 0))
    assert different.vendi == pytest.approx(3)
    assert self_similarity(["a"], embed, seed=0) is None


def test_vendi_score_is_the_exponential_of_the_entropy_of_the_cosines_eigenvalues():
    rng = np.random.default_rng(0)
    vectors = {str(i): rng.normal(size=4).astype(np.float32) for i in range(9)}
    found = self_similarity(list(vectors), lambda texts: np.stack([vectors[text] for text in texts]), seed=0)
    matrix = np.stack([vector / np.linalg.norm(vector) for vector in vectors.values()]).astype(np.float64)
    values = np.linalg.eigvalsh(matrix @ matrix.T / 9)
    values = values[values > 1e-12]
    assert found is not None
    assert found.vendi == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-4)
