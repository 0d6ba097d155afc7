"""A head applied by hand, and its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.errors import ConfigError
from engine.routing.ambiguity import AmbiguityHead, EmbeddingPart, SignalPart, WordPart, platt
from engine.routing.ambiguity_files import ARRAYS_FILE, HEAD_FILE, MAX_JSON_BYTES, read_ambiguity, write_ambiguity
from engine.routing.question_features import hashed_rows
from engine.routing.signals.table import SignalTable

WIDTH = 1024
# What "it" has and "dog" has not weighs 2 in all.
_ONLY_IT = set(hashed_rows(["it"], WIDTH, {"is"}).columns) - set(hashed_rows(["dog"], WIDTH, {"is"}).columns)
_IT = hashed_rows(["it"], WIDTH, {"is"})
WORDS = np.zeros(WIDTH, dtype=np.float32)
for _column, _value in zip(_IT.columns, _IT.values, strict=True):
    if _column in _ONLY_IT:
        WORDS[_column] = 2.0 / (len(_ONLY_IT) * _value)
EMBEDDING = EmbeddingPart(
    "e" * 64,
    landmarks=np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], dtype=np.float32),
    weights=np.array([1.0, -2.0, 4.0], dtype=np.float32),
    bandwidth=0.5,
    signal_scale=0.25,
)
SIGNALS = SignalPart(
    ("search.z_gap", "search.documents"),
    means=np.array([1.0, 2.0]),
    scales=np.array([0.5, 1.0]),
    weights=np.array([-1.0, 0.25]),
    unknown=np.array([0.125, 0.0]),
)
BARE = AmbiguityHead(0.5, WordPart(WORDS, frozenset({"is"})), None, None, 2.0, -1.0)
# Landmarks with two signals of their own, both known.
WITH_SIGNALS = replace(EMBEDDING, landmarks=np.hstack([EMBEDDING.landmarks, np.zeros((3, 4), np.float32)]))
WHOLE = replace(BARE, embedding=WITH_SIGNALS, signals=SIGNALS)
EAST_AND_NORTH = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)


def test_words_of_a_question_are_weighed():
    assert BARE.scores(["it", "dog"]) == pytest.approx([2.5, 0.5])


def test_embedding_counts_by_how_near_it_is_to_landmarks():
    head = replace(BARE, embedding=EMBEDDING)
    # Squared distances to the landmarks: 0, 4 and 2 from the east, 2, 2 and 4 from the north.
    near = [[1.0, math.exp(-2), math.exp(-1)], [math.exp(-1), math.exp(-1), math.exp(-2)]]
    expected = [0.5 + east - 2 * west + 4 * south for east, west, south in near]
    assert head.scores(["dog", "dog"], EAST_AND_NORTH) == pytest.approx(expected, abs=1e-6)


def test_signals_make_a_question_less_near():
    table = SignalTable(SIGNALS.names, np.array([[2.0, np.nan]]))
    near = WHOLE.scores(["dog"], EAST_AND_NORTH[:1], table) - replace(WHOLE, embedding=None).scores(
        ["dog"], None, table
    )
    # Two standard deviations and one unknown signal, each times 0.25: 0.25 + 0.0625 more in every squared distance.
    expected = math.exp(-0.5 * 0.3125) * (1.0 - 2 * math.exp(-2) + 4 * math.exp(-1))
    assert near == pytest.approx([expected], abs=1e-6)


def test_a_signal_far_from_its_mean_counts_up_to_a_limit():
    head = replace(BARE, signals=SIGNALS)
    far, further = (SignalTable(SIGNALS.names, np.array([[value, 2.0]])) for value in (3.0, 1e6))
    assert head.scores(["dog"], signals=far) == head.scores(["dog"], signals=further) == pytest.approx([0.5 - 4.0])


def test_signals_count_in_standard_deviations_and_unknown_ones_by_their_own_weight():
    head = replace(BARE, signals=SIGNALS)
    table = SignalTable(("search.documents", "other", "search.z_gap"), np.array([[4.0, 9.0, 2.0], [2.0, 9.0, np.nan]]))
    assert head.scores(["dog", "dog"], signals=table) == pytest.approx([0.5 - 2.0 + 0.5, 0.5 + 0.125])
    assert head.scores(["dog"]) == pytest.approx([0.5 + 0.125])


def test_probability_is_calibrated_and_never_overflows():
    assert BARE.probabilities(["it"]) == pytest.approx([1 / (1 + math.exp(-4.0))])
    assert platt(np.array([-1e9, 0.0, 1e9]), 2.0, 0.0).tolist() == [0.0, 0.5, 1.0]


def test_a_batch_gives_what_each_question_gives_alone():
    questions = ["it", "is it so", ""]
    embeddings = np.vstack([EAST_AND_NORTH, EAST_AND_NORTH[:1]])
    table = SignalTable(SIGNALS.names, np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, 0.0]]))
    together = WHOLE.probabilities(questions, embeddings, table)
    for place, question in enumerate(questions):
        mine = SignalTable(table.names, table.values[place : place + 1])
        alone = WHOLE.probabilities([question], embeddings[place : place + 1], mine)
        assert alone == pytest.approx(together[place], abs=1e-6)


@pytest.mark.parametrize("embeddings", [None, EAST_AND_NORTH[:, :1], EAST_AND_NORTH[:1]])
def test_embeddings_that_are_missing_or_do_not_fit_are_refused(embeddings):
    with pytest.raises(ValueError, match=r"this head needs \(2, 2\)"):
        WHOLE.scores(["a", "b"], embeddings)


@pytest.mark.parametrize("head", [BARE, WHOLE, replace(BARE, signals=SIGNALS)])
def test_a_head_survives_its_files(tmp_path: Path, head: AmbiguityHead):
    write_ambiguity(tmp_path, head)
    files = [(tmp_path / name).read_bytes() for name in (HEAD_FILE, ARRAYS_FILE)]
    again = read_ambiguity(tmp_path)
    questions = ["it", "is it so"]
    expected = head.probabilities(questions, EAST_AND_NORTH)
    np.testing.assert_array_equal(again.probabilities(questions, EAST_AND_NORTH), expected)
    assert again.words.common == {"is"}
    assert (again.embedding and again.embedding.encoder) == (head.embedding and "e" * 64)
    write_ambiguity(tmp_path, again)
    assert [(tmp_path / name).read_bytes() for name in (HEAD_FILE, ARRAYS_FILE)] == files


def changed(folder: Path, arrays: dict[str, np.ndarray | None], content: dict[str, object] | None = None) -> None:
    """Change tensors (None removes one) and fields; the digest is made to fit."""
    found = load((folder / ARRAYS_FILE).read_bytes())
    found = {name: array for name, array in (found | arrays).items() if array is not None}
    packed = save(found)
    (folder / ARRAYS_FILE).write_bytes(packed)
    fields = json.loads((folder / HEAD_FILE).read_text()) | {"arrays_sha256": hashlib.sha256(packed).hexdigest()}
    (folder / HEAD_FILE).write_text(json.dumps(fields | (content or {})))


NAN = np.full(WIDTH, np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "content", "message"),
    [
        ({"words": None}, {}, "tensor words is missing"),
        ({"words": WORDS.astype(np.float64)}, {}, "tensor words is float64"),
        ({"words": WORDS[:0]}, {}, r"tensor words is float32 \(0,\)"),
        ({"words": NAN}, {}, "tensor words holds NaN or infinity"),
        ({"embedding.weights": np.zeros(2, np.float32)}, {}, r"embedding.weights is float32 \(2,\); .* with 3 values"),
        ({"embedding.landmarks": np.ones((3, 4), np.float32)}, {}, "no room for an embedding and the signals"),
        ({}, {"bandwidth": 0.0}, "bandwidth: Input should be greater than 0"),
        ({"signals.scales": np.zeros(2)}, {}, "signals.scales must be positive"),
        ({"extra": WORDS}, {}, "tensors extra belong to no part"),
        ({}, {"signals": None}, "tensors signals.means, .* belong to no part"),
        ({}, {"slope": -1.0}, "slope: Input should be greater than or equal to 0"),
        ({}, {"format": 2}, "format: Input should be 1"),
        ({}, {"code": "import os"}, "code: Extra inputs are not permitted"),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, arrays, content, message):
    write_ambiguity(tmp_path, WHOLE)
    changed(tmp_path, arrays, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_ambiguity(tmp_path)
    assert str(tmp_path) in str(caught.value) and "Fit the ambiguity head again" in str(caught.value)


def test_pipe_in_place_of_a_file_does_not_hang_the_reader(tmp_path: Path):
    os.mkfifo(tmp_path / HEAD_FILE)
    with pytest.raises(ConfigError, match="is no regular file"):
        read_ambiguity(tmp_path)


def test_damaged_missing_and_huge_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"ambiguity.json: cannot be read \(No such file"):
        read_ambiguity(tmp_path)
    write_ambiguity(tmp_path, BARE)
    packed = (tmp_path / ARRAYS_FILE).read_bytes()
    (tmp_path / ARRAYS_FILE).write_bytes(packed[:-1])
    with pytest.raises(ConfigError, match="has another SHA-256"):
        read_ambiguity(tmp_path)
    (tmp_path / HEAD_FILE).write_bytes(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(ConfigError, match="has more than 1048576 bytes"):
        read_ambiguity(tmp_path)
    (tmp_path / HEAD_FILE).write_bytes(b"[]")
    with pytest.raises(ConfigError, match=r"ambiguity\.json: Input should be an object"):
        read_ambiguity(tmp_path)
