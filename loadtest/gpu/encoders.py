"""The encoder on the device, random weights in MiniLM's shape: equal to sentence-transformers', then texts a second."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from engine.config import RetrieverSettings, usable_cores
from engine.retrieval.encoding.encoder import Encoder
from loadtest.bench_format import OURS, Ratio, Row, paired_ratio, spread
from loadtest.gpu.record import Budget, Record

PEER = "sentence-transformers"
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NUM_WORDS, _MAX_TOKENS = 30_000, 256
# Least cosine to sentence-transformers in float32.
_LEAST = {"float32": 0.9999, "float16": 0.999}
# Rounds by batch, and seconds after which a case is not repeated.
BATCHES = {1: 50, 32: 20, 512: 5}
DRY_BATCHES = {1: 2, 4: 2}
_CASE_S = 4.0


def race_encoders(record: Record, device: str, work: Path, *, is_dry: bool, budget: Budget) -> None:
    """Both number formats, each noted on its own."""
    from sentence_transformers import SentenceTransformer

    folder = write_encoder(work / "encoder", TINY if is_dry else MINILM)
    texts = _texts(4 if is_dry else 512)
    exact: Any = SentenceTransformer(str(folder), device=device, local_files_only=True)
    expected = exact.encode(texts, batch_size=32, show_progress_bar=False)
    for dtype in ("float32", "float16"):

        def measure(dtype: str = dtype) -> None:
            ours = Encoder(
                folder,
                threads=usable_cores(),
                device=device,
                dtype=dtype,
                batch_tokens=RetrieverSettings().forward_tokens(device),
            )
            _check(record, dtype, ours.encode(texts), expected)
            peer: Any = SentenceTransformer(
                str(folder), device=device, local_files_only=True, model_kwargs={"dtype": getattr(torch, dtype)}
            )
            for batch, rounds in (DRY_BATCHES if is_dry else BATCHES).items():
                _race(record, f"encoder {dtype} batch {batch}", ours, peer, texts[:batch], rounds, budget)

        record.attempt(f"encoder {dtype}", measure, estimate_s=8)


def _check(record: Record, dtype: str, ours: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(expected, axis=1)
    least = float(((ours * expected).sum(1) / norms).min())
    words = f"least cosine to {PEER} in float32 {least:.6f}"
    record.check(f"encoder {dtype}", is_right=least >= _LEAST[dtype], words=words)


def _race(record: Record, case: str, ours: Encoder, peer: Any, texts: list[str], rounds: int, budget: Budget) -> None:
    def by_peer(batch_size: int) -> Callable[[], object]:
        return lambda: peer.encode(texts, batch_size=batch_size, show_progress_bar=False)

    systems: dict[str, Callable[[], object]] = {OURS: lambda: ours.encode(texts), PEER: by_peer(32)}
    if len(texts) > 32:  # its default is 32; a GPU wants more
        systems[f"{PEER} batch_size 256"] = by_peer(256)
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for encode in systems.values():
        encode()
    started = time.monotonic()
    for _ in range(rounds):
        for name, encode in systems.items():
            began = time.perf_counter()
            encode()
            rates[name].append(len(texts) / (time.perf_counter() - began))
        if time.monotonic() - started > _CASE_S or budget.left_s() == 0:
            break
    for name, values in rates.items():
        record.found.rows.append(Row(case, name, "texts_s", "texts/s", *spread(values)))
        if name != OURS:
            ratio = paired_ratio(rates[OURS], values, higher_is_better=True)
            record.found.ratios.append(Ratio(case, "texts_s", name, *ratio))
    record.save()


def _texts(number: int) -> list[str]:
    """8 to 200 words each, as passages have."""
    drawn = random.Random(0)
    return [" ".join(f"w{drawn.randrange(_NUM_WORDS)}" for _ in range(drawn.randrange(8, 200))) for _ in range(number)]


def write_encoder(folder: Path, shape: dict[str, int]) -> Path:
    """Save a random BERT of that shape in sentence-transformers' layout, one token for each word. Returns `folder`."""
    words = [*_SPECIAL, *(f"w{index}" for index in range(_NUM_WORDS))]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name[1:-1].lower()}_token": name for name in _SPECIAL},
        model_max_length=_MAX_TOKENS,
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=512, **shape)).save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": shape["hidden_size"],
            "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config.json": {"max_seq_length": _MAX_TOKENS, "do_lower_case": False},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
