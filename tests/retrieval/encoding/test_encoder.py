"""The encoder against sentence-transformers, and what it makes of a folder's settings."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_encoder import write_tiny_encoder

from engine.errors import ConfigError, ModelSourceError
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.encoding.protocol import token_batches

TEXTS = [
    "How do I create a volume snapshot?",
    "",
    "Straße 日本語 😀",
    "word " * 600,
    *(f"Passage {i} about machines in region {i % 7}. " * (i % 9) for i in range(40)),
]


@pytest.fixture
def folder(tmp_path):
    return write_tiny_encoder(tmp_path / "encoder")


def change(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


@pytest.fixture(scope="session")
def default_encoder(default_encoder_path):
    return Encoder(default_encoder_path, threads=2, dtype="float32", batch_tokens=2048)


@pytest.fixture(scope="session")
def expected(default_encoder_path):
    """What sentence-transformers makes of TEXTS in float32."""
    library = pytest.importorskip("sentence_transformers", reason="install '.[bench]' for the parity test")
    model = library.SentenceTransformer(str(default_encoder_path), device="cpu", local_files_only=True)
    return model.encode(TEXTS, convert_to_numpy=True)


def test_default_encoder_equals_sentence_transformers(default_encoder, expected):
    np.testing.assert_allclose(default_encoder.encode(TEXTS), expected, atol=2e-6)
    assert default_encoder.dim == expected.shape[1]
    assert default_encoder.max_tokens == 256


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_narrow_weights_keep_a_cosine_of_999_in_a_thousand(default_encoder_path, expected, dtype):
    encoder = Encoder(default_encoder_path, threads=2, dtype=dtype, batch_tokens=2048)
    assert (encoder.encode(TEXTS) * expected).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_pooling_and_normalisation_follow_the_folder(folder, pooling, normalise):
    library = pytest.importorskip("sentence_transformers", reason="install '.[bench]' for the parity test")
    (folder / "1_Pooling" / "config.json").unlink()
    change(folder, "1_Pooling/config.json", word_embedding_dimension=32)
    change(folder, "1_Pooling/config.json", pooling_mode_mean_tokens=pooling == "mean")
    change(folder, "1_Pooling/config.json", pooling_mode_cls_token=pooling == "cls")
    if not normalise:
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps(modules[:2]))
    encoder = Encoder(folder, threads=1, dtype="float32", batch_tokens=512)
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    assert (encoder.identity.pooling, encoder.identity.normalise) == (pooling, normalise)


def test_prompts_of_the_folder_go_before_queries_and_passages(folder):
    plain = Encoder(folder, threads=1, dtype="float32", batch_tokens=512)
    change(folder, "config_sentence_transformers.json", prompts={"query": "query: ", "document": "passage: "})
    encoder = Encoder(folder, threads=1, dtype="float32", batch_tokens=512)
    np.testing.assert_allclose(encoder.encode(["a"], is_query=True), plain.encode(["query: a"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["a"]), plain.encode(["passage: a"]), atol=1e-6)
    assert encoder.max_tokens == plain.max_tokens - len("passage:")
    assert encoder.identity.digest != plain.identity.digest


def test_vectors_do_not_depend_on_batches_or_order(folder):
    one_by_one = Encoder(folder, threads=1, dtype="float32", batch_tokens=1)
    together = Encoder(folder, threads=1, dtype="float32", batch_tokens=100_000)
    np.testing.assert_allclose(one_by_one.encode(TEXTS), together.encode(TEXTS), atol=1e-6)
    np.testing.assert_array_equal(together.encode(TEXTS), together.encode(TEXTS))
    np.testing.assert_allclose(together.encode(TEXTS[::-1])[::-1], together.encode(TEXTS), atol=1e-6)


def test_no_texts_give_no_vectors(folder):
    assert Encoder(folder, threads=1, batch_tokens=512).encode([]).shape == (0, 32)


def test_batches_hold_every_text_once_within_the_budget():
    lengths = [3, 200, 7, 7, 120, 1, 64]
    batches = list(token_batches(lengths, 128))
    assert sorted(position for batch in batches for position in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 128 for batch in batches)
    assert [len(batch) for batch in batches] == [1, 1, 2, 3]


def test_digest_changes_with_the_weights_and_not_with_the_place(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    digest = Encoder(folder, threads=1, batch_tokens=512).identity.digest
    assert Encoder(copy, threads=1, batch_tokens=512).identity.digest == digest
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert Encoder(copy, threads=1, batch_tokens=512).identity.digest != digest


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_folder_is_refused_naming_what_is_missing(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ModelSourceError, match=r"has no (\*\.)?" + missing.removeprefix("model.")):
        Encoder(folder, threads=1, batch_tokens=512)


def test_module_and_pooling_that_are_not_supported_are_refused_by_name(folder):
    change(folder, "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    with pytest.raises(ModelSourceError, match=r"pooling_mode_max_tokens is not supported; supported: mean, cls"):
        Encoder(folder, threads=1, batch_tokens=512)
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ModelSourceError, match=r"names 'Dense'; supported: Transformer, Pooling, Normalize"):
        Encoder(folder, threads=1, batch_tokens=512)


def test_weights_with_missing_layers_are_refused(folder):
    change(folder, "config.json", num_hidden_layers=2)
    with pytest.raises(ModelSourceError, match=r"the weights lack encoder\.layer\.1"):
        Encoder(folder, threads=1, batch_tokens=512)


def test_unknown_dtype_is_refused_with_the_list(folder):
    with pytest.raises(ConfigError, match=r"dtype 'int8' is not supported .* auto, float32, bfloat16, float16"):
        Encoder(folder, threads=1, dtype="int8", batch_tokens=512)
