"""The generation bench's texts and labels, and what computing them takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from engine.generation.decoder.spec import read_spec
from engine.generation.model_files import load_tokenizer
from loadtest.generation.bounds import product_operations
from loadtest.generation.classify import DATA, Texts, agreement, read_texts


def test_committed_texts_and_labels_are_as_many_as_promised_and_name_their_licence():
    raw = json.loads(DATA.read_text(encoding="utf-8"))
    assert len(set(raw["labels"])) == 77 and len(set(raw["texts"])) == 32
    assert "CC BY 4.0" in raw["source"]


def test_prompts_end_where_the_answer_begins_and_labels_are_read_back(tmp_path: Path):
    model = write_tiny_model(tmp_path)
    texts = read_texts(model, 3)
    tokenizer = load_tokenizer(model)
    assert len(texts.prompts) == 3
    assert tokenizer.decode(texts.prompts[0]).endswith("<|im_start|>assistant\n")
    assert [tokenizer.decode(label) for label in texts.labels] == list(texts.names)


def test_shared_beginnings_of_labels_and_their_last_tokens_are_not_computed_twice():
    texts = Texts(((1, 2, 3), (4, 5)), ((7, 8, 9), (7, 8, 10), (11,)), ("a", "b", "c"))
    # 7 and 8 behind each prompt; the logits after them score 9 and 10, those of the prompt 7 and 11.
    assert texts.num_computed == 5 + 2 * 2
    assert texts.num_scored == 2 * 7


def test_texts_that_stand_for_all_are_those_of_usual_length():
    prompts = tuple(tuple(range(length)) for length in (1, 30, 18, 20, 16))  # 17 in the mean
    assert Texts(prompts, ((7,),), ("a",)).typical(3) == [2, 4, 3]


def test_operations_count_two_for_each_weight_of_a_token(tmp_path: Path):
    spec = read_spec(write_tiny_model(tmp_path))
    head = 2 * spec.vocab_size * spec.hidden_size
    one = product_operations(spec, num_tokens=1, num_logits=0)
    mlp = 3 * spec.hidden_size * spec.intermediate_size
    attention = 2 * spec.hidden_size * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    assert one == 2 * spec.num_layers * (mlp + attention)
    assert product_operations(spec, num_tokens=5, num_logits=3) == 5 * one + 3 * head


def test_agreement_shows_the_largest_difference_and_equal_best_labels():
    found = agreement([[-1.0, -2.0], [-30.0, -29.5]], [[-1.05, -2.0], [-29.0, -29.5]])
    assert found == {"largest difference in log-probability": 1.0, "same best label": "1 of 2"}


@pytest.mark.parametrize("other", [-1.2, math.nan])
def test_scores_that_differ_by_more_than_rounding_end_the_bench(other: float):
    with pytest.raises(
        ValueError, match=r"the log-probability -1\.000 in one call and (-1\.200|nan) in a call of its own"
    ):
        agreement([[-1.0]], [[other]])
