"""Our forward against transformers' own, over lengths and batches of any kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_encoder import write_tiny_encoder
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

from engine.errors import ModelSourceError
from engine.retrieval.encoding.bert import Bert, runs_bert
from engine.retrieval.encoding.encoder import Encoder, choose_dtype
from engine.retrieval.encoding.padded import PaddedEncoder
from kernels.float_linear import integer_products_absence

_IS_ROUNDED = integer_products_absence() is None and choose_dtype("auto", torch.device("cpu")) == torch.float32
NEEDS_ROUNDING = pytest.mark.skipif(not _IS_ROUNDED, reason=f"nothing is rounded here: {integer_products_absence()}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three layers, heads of 32: they fill the panels of the native kernels."""
    path = write_tiny_encoder(tmp_path_factory.mktemp("bert") / "encoder", max_tokens=128, dim=64)
    save(path, BertModel, BertConfig, max_position_embeddings=128)
    return path


def save(path, model, config, **fields):
    vocabulary = Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 100}
    built = model(config(vocab_size=vocabulary, **sizes, **fields))
    with torch.no_grad():  # as they are drawn, biases are 0, norms 1 and all vectors alike
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    built.save_pretrained(path)


@pytest.fixture(scope="session")
def pair(folder):
    return Bert(folder), PaddedEncoder(folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 126), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_states_equal_those_of_transformers_for_any_lengths(pair, tokenizer, lengths, seed):
    letters = np.random.default_rng(seed).choice(list("abcdefghij"), size=(len(lengths), 126))
    texts = [" ".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]
    encodings = tokenizer.encode_batch(texts)
    assert [len(encoding.ids) for encoding in encodings] == [length + 2 for length in lengths]
    ours, theirs = pair
    with torch.inference_mode():
        torch.testing.assert_close(ours.states(encodings), theirs.states(encodings), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("model", "config"), [(RobertaModel, RobertaConfig), (XLMRobertaModel, XLMRobertaConfig)])
def test_positions_of_the_roberta_family_start_behind_the_padding(tmp_path, model, config):
    path = write_tiny_encoder(tmp_path / "encoder", max_tokens=64, dim=64)
    save(path, model, config, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1)
    assert runs_bert(path)
    # [UNK] has the id of the padding here, as a text may hold it too.
    encodings = Tokenizer.from_file(str(path / "tokenizer.json")).encode_batch(["ab", "日 ab 本 c", "", "x" * 62])
    theirs = PaddedEncoder(path, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        for encoding in encodings:
            ids = torch.tensor([encoding.ids])
            expected = theirs._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            torch.testing.assert_close(Bert(path).states([encoding]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 3, 300, 5000])
def test_default_encoder_equals_transformers(default_encoder_path, length):
    ours = Encoder(default_encoder_path, threads=2, dtype="float32", batch_tokens=512)
    theirs = Encoder(default_encoder_path, threads=2, dtype="float32", batch_tokens=512)
    assert isinstance(ours._model, Bert)
    theirs._model = PaddedEncoder(default_encoder_path, torch.device("cpu"), torch.float32)
    texts = ["volume " * (length // (i + 1)) for i in range(5)]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-5)


@NEEDS_ROUNDING
@pytest.mark.parametrize("length", [1, 3, 300, 5000])
def test_rounded_products_keep_the_vectors_of_the_default_encoder(default_encoder_path, length):
    rounded = Encoder(default_encoder_path, threads=2, batch_tokens=512)
    exact = Encoder(default_encoder_path, threads=2, dtype="float32", batch_tokens=512)
    texts = ["volume " * (length // (i + 1)) for i in range(5)] + ["How do I attach a volume?", "Zürich, 日本"]
    ours, expected = rounded.encode(texts), exact.encode(texts)
    assert not np.array_equal(ours, expected)
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert (ours.astype(np.float64) * expected).sum(axis=1).min() > 0.999999


@NEEDS_ROUNDING
def test_only_the_dtype_auto_rounds(folder):
    for dtype, is_rounded in (("auto", True), ("float32", False)):
        encoder = Encoder(folder, threads=1, dtype=dtype, batch_tokens=64)
        assert isinstance(encoder._model, Bert)
        assert {layer.up.steps is not None for layer in encoder._model._layers} == {is_rounded}


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_vector_does_not_depend_on_its_batch(folder, dtype):
    texts = [f"passage {i} " * (i % 11) for i in range(40)]
    if choose_dtype(dtype, torch.device("cpu")) != torch.float32:
        pytest.skip("auto is bfloat16 on this processor, which transformers runs")
    together = Encoder(folder, threads=2, dtype=dtype, batch_tokens=4096).encode(texts)
    alone = Encoder(folder, threads=2, dtype=dtype, batch_tokens=1).encode(texts)
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    "field",
    [
        {"model_type": "mpnet"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"num_attention_heads": None},
    ],
)
def test_what_differs_from_bert_is_left_to_transformers(tmp_path, field):
    path = write_tiny_encoder(tmp_path / "encoder")
    assert runs_bert(path)
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | field))
    assert not runs_bert(path)


def test_encoder_runs_on_transformers_where_bert_does_not_fit(tmp_path):
    path = write_tiny_encoder(tmp_path / "encoder")
    assert isinstance(Encoder(path, threads=1, dtype="float32", batch_tokens=64)._model, Bert)
    assert isinstance(Encoder(path, threads=1, dtype="bfloat16", batch_tokens=64)._model, PaddedEncoder)
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    assert isinstance(Encoder(path, threads=1, dtype="float32", batch_tokens=64)._model, PaddedEncoder)


def test_weights_of_a_model_with_a_head_and_old_names_of_norms_are_found(folder, tmp_path):
    path = write_tiny_encoder(tmp_path / "encoder")
    plain = Encoder(path, threads=1, dtype="float32", batch_tokens=64).encode(["some text"])
    weights = load_file(path / "model.safetensors")
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights.items()
    }
    save_file(renamed, path / "model.safetensors")
    again = Encoder(path, threads=1, dtype="float32", batch_tokens=64).encode(["some text"])
    np.testing.assert_array_equal(again, plain)


def test_weights_that_are_no_safetensors_are_refused_by_name(tmp_path):
    path = write_tiny_encoder(tmp_path / "encoder")
    (path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelSourceError, match="the weights cannot be read"):
        Encoder(path, threads=1, dtype="float32", batch_tokens=64)
