"""The cross-encoder: its scores are transformers' own, and the retriever ranks by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stub_encoder import SETTINGS, StubEncoder
from tiny_encoder import write_tiny_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from engine.errors import ModelSourceError
from engine.retrieval.encoding.bert import BertScorer
from engine.retrieval.encoding.padded import PaddedScorer
from engine.retrieval.encoding.reranker import Reranker
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Evidence, Query

QUERY = "how is a volume restored?"
TEXTS = ["a volume", "snapshots are kept for five days and restored by name", "machines " * 200, ""]


def write_cross_encoder(folder: Path, *, num_labels: int = 1) -> Path:
    write_tiny_encoder(folder, max_tokens=64)
    config = BertConfig.from_pretrained(folder)
    config.num_labels = num_labels
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_scores_are_those_of_transformers_whatever_the_batches(tmp_path: Path, batch_tokens: int):
    path = write_cross_encoder(tmp_path)
    ours = Reranker(path, dtype="float32", batch_tokens=batch_tokens).scores(QUERY, TEXTS)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    for text, score in zip(TEXTS, ours, strict=True):
        inputs = tokenizer(QUERY, text, return_tensors="pt", truncation=True, max_length=64)
        with torch.inference_mode():
            assert float(model.eval()(**inputs).logits) == pytest.approx(float(score), abs=1e-4)


def test_cross_encoder_of_bert_runs_on_our_forward_and_others_on_transformers(tmp_path: Path):
    path = write_cross_encoder(tmp_path)
    ours, theirs = Reranker(path, dtype="float32", batch_tokens=512), Reranker(path, dtype="float32", batch_tokens=512)
    assert isinstance(ours._model, BertScorer)
    theirs._model = PaddedScorer(path, torch.device("cpu"), torch.float32)
    np.testing.assert_allclose(ours.scores(QUERY, TEXTS), theirs.scores(QUERY, TEXTS), atol=1e-5)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    assert isinstance(Reranker(path, dtype="float32", batch_tokens=512)._model, PaddedScorer)


def test_scores_of_the_dtype_auto_are_those_of_float32_up_to_rounding(tmp_path: Path):
    path = write_cross_encoder(tmp_path)
    ours, exact = Reranker(path, batch_tokens=512), Reranker(path, dtype="float32", batch_tokens=512)
    tolerance = 1e-3 if isinstance(ours._model, BertScorer) else 1e-2  # bfloat16 where the processor computes in it
    np.testing.assert_allclose(ours.scores(QUERY, TEXTS), exact.scores(QUERY, TEXTS), atol=tolerance)


def test_question_longer_than_the_model_reads_is_cut(tmp_path: Path):
    scores = Reranker(write_cross_encoder(tmp_path), batch_tokens=4096).scores("why " * 500, ["a", "b"])
    assert np.isfinite(scores).all()


def test_models_that_are_no_rerankers_are_refused_by_name(tmp_path: Path):
    with pytest.raises(ModelSourceError, match=r"is no reranker, it gives 3 scores\. Set retriever\.reranker"):
        Reranker(write_cross_encoder(tmp_path / "three", num_labels=3), batch_tokens=512)
    with pytest.raises(ModelSourceError, match="no reranker, it lacks the weights classifier"):
        Reranker(write_tiny_encoder(tmp_path / "encoder"), batch_tokens=512)
    with pytest.raises(ModelSourceError, match="cannot be loaded as a reranker"):
        Reranker(tmp_path / "nothing", batch_tokens=512)


class PrefersShort:
    """A reranker whose judgement is easy to foresee."""

    def scores(self, query: str, texts: list[str]) -> np.ndarray:
        return np.array([-len(text) / 100 for text in texts], np.float32)


def test_retriever_ranks_the_best_of_the_search_by_the_reranker(tmp_path: Path):
    settings = SETTINGS.model_copy(update={"rerank_depth": 4})
    retriever = Retriever(tmp_path, StubEncoder(), settings, PrefersShort())
    retriever.write("docs", [DocumentWrite(str(n), b"zebra" + b" zoo" * n) for n in range(8)])
    (found,) = retriever.evidence([Query("zebra zoo zoo zoo", "docs", 2)])
    retriever.close()
    assert isinstance(found, Evidence)
    lengths = [len(passage.text) for passage in found.passages]
    assert lengths == sorted(lengths) and len(lengths) == 2 == len(found.similarities)
    assert all(0 < passage.score < 1 for passage in found.passages) and found.timings_ms["rerank"] >= 0
