"""The training inputs that an adapter carries: which rows, what of them is embedded, and what is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import write_tiny_encoder

from engine.generation.adapters.inputs import read_inputs
from engine.generation.adapters.manifest import AdapterManifest
from engine.retrieval.encoding.encoder import Encoder
from engine.tuning.data.rows import ChatRow, CompletionRow, LabelRow, QuestionRow
from engine.tuning.run.inputs import EncodedInputs, asked_text, encode_inputs, write_inputs
from engine.tuning.run.rows import draw_rows
from engine.values import Message


class CountingEncoder(Encoder):
    """Notes what it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, threads=1, batch_tokens=2048)
        self.asked: list[tuple[str, ...]] = []

    def encode(self, texts, *, is_query: bool = False):
        assert is_query, "what users send is embedded as a query"
        self.asked.append(tuple(texts))
        return super().encode(texts, is_query=is_query)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(folder: Path) -> CountingEncoder:
    return CountingEncoder(folder)


def labelled(counts: list[int]) -> list[LabelRow]:
    labels = [f"label {number}" for number, count in enumerate(counts) for _ in range(count)]
    return [LabelRow(line, f"text {line}", label) for line, label in enumerate(labels, 1)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200), st.integers(0, 5))
def test_every_label_keeps_its_share_of_the_draw_to_within_one_row(counts: list[int], most: int, seed: int):
    rows = labelled(counts)
    drawn = draw_rows(rows, most, seed=seed)
    assert len(drawn) == min(most, len(rows))
    assert [row.line for row in drawn] == sorted({row.line for row in drawn})
    share = min(1, most / len(rows))
    for label, count in Counter(row.label for row in rows).items():
        assert abs(sum(row.label == label for row in drawn) - share * count) < 1


def test_questions_keep_the_share_of_their_documents_and_other_seeds_draw_others():
    rows = [
        QuestionRow(line, f"q{line}", ("a",), context=f"c{line % 5}", document="long" if line % 4 else "short")
        for line in range(1, 401)
    ]
    draws = [draw_rows(rows, 40, seed=seed) for seed in (0, 0, 1)]
    for drawn in draws:
        assert Counter(row.document for row in drawn) == {"long": 30, "short": 10}
    assert draws[0] == draws[1] != draws[2]


def test_what_a_search_embeds_of_each_kind_of_row_is_embedded():
    turns = ("How do I resize an encrypted volume?", "By a command.", "And how long does it take?", "A minute.")
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = tuple(Message(role, text) for role, text in zip(roles, ("Be brief.", *turns), strict=True))
    follow_up = asked_text(ChatRow(1, messages))
    assert follow_up.startswith("And how long does it take?") and "encrypted" in follow_up and "brief" not in follow_up
    assert asked_text(ChatRow(1, messages[:3])) == turns[0]
    assert asked_text(CompletionRow(1, "Rewrite: hi", "Hello")) == "Rewrite: hi"
    assert asked_text(LabelRow(1, "Where is it?", "lost")) == "Where is it?"
    assert asked_text(QuestionRow(1, "How tall?", ("330 m",), context="It is 330 m.")) == "How tall?"


def test_inputs_are_embedded_once_for_the_adapter_and_for_the_models_it_is_compared_with(encoder: CountingEncoder):
    rows = labelled([3, 3])
    inputs = encode_inputs(rows, encoder, seed=0)
    texts = [rows[4].text, "another", rows[0].text, "another"]
    found = inputs.encode(texts)
    assert encoder.asked == [tuple(row.text for row in rows), ("another",)]
    np.testing.assert_allclose(found, Encoder.encode(encoder, texts, is_query=True), atol=1e-5)
    np.testing.assert_array_equal(inputs.encode([row.text for row in rows]), inputs.vectors)
    assert len(encoder.asked) == 2


def test_written_inputs_are_read_back_and_the_same_seed_gives_the_same_bytes(
    encoder: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.tuning.run.inputs.MAX_INPUTS", 10)
    rows = labelled([30, 10])
    contents = []
    for seed in (0, 0, 1):
        written = write_inputs(tmp_path, encode_inputs(rows, encoder, seed=seed))
        assert written is not None and (written.rows, written.dimension) == (10, 32)
        assert (written.encoder, written.encoder_digest) == (encoder.identity.name, encoder.identity.digest)
        found = read_inputs(tmp_path, AdapterManifest(inputs=written), "bot")
        assert found is not None
        vectors = Encoder.encode(encoder, [row.text for row in draw_rows(rows, 10, seed=seed)], is_query=True)
        np.testing.assert_allclose(found.embeddings, vectors, atol=1e-3)
        contents.append((tmp_path / written.file).read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_rows_of_any_length_are_written_at_length_one_and_those_without_direction_left_out(
    encoder: CountingEncoder, tmp_path: Path
):
    vectors = np.array([[3, 4], [0, 0], [np.nan, 1], [0, -2e-6]], np.float32)
    written = write_inputs(tmp_path, EncodedInputs(encoder, tuple("abcd"), vectors))
    assert written is not None
    found = read_inputs(tmp_path, AdapterManifest(inputs=written), "bot")
    assert found is not None
    np.testing.assert_allclose(found.embeddings, [[0.6, 0.8], [0, -1]], atol=1e-3)
    assert write_inputs(tmp_path, EncodedInputs(encoder, ("b",), vectors[1:2])) is None
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_the_file_of_an_earlier_session_goes(encoder: CountingEncoder, tmp_path: Path):
    write_inputs(tmp_path, encode_inputs(labelled([2]), encoder, seed=0))
    assert write_inputs(tmp_path, None) is None
    assert list(tmp_path.iterdir()) == []
