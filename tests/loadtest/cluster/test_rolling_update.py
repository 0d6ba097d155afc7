"""A service that is updated while requests go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from loadtest.cluster.rolling_update import NEWS, TONE, Step, Updated, judge, rows, run
from loadtest.cluster.update_load import Answer, Kind

STREAM, WHOLE, AUTO = Kind(TONE, "direct", True), Kind(NEWS, "direct", False), Kind("auto", "auto", False)


def answer(kind: Kind, begun_s: float, end_s: float, **fields: object) -> Answer:
    whole = {"status": 200, "error": None, "text": "old", "adapter": "a", "router": "r"}
    return Answer(kind, begun_s, end_s, **whole | fields)  # type: ignore[arg-type]


def seen(*more: Answer, **fields: object) -> Updated:
    """A run in which all went well, and what else happened in it."""
    steps = [Step("adapter replaced", 10, 11), Step("adapter unloaded", 20, 21), Step("router replaced", 30, 31)]
    answers = [
        answer(STREAM, 9, 12),
        answer(STREAM, 12, 13, text="new", adapter="b"),
        answer(WHOLE, 5, 6),
        answer(WHOLE, 22, 23, status=404, error="unknown"),
        answer(AUTO, 32, 33),
    ]
    whole = {
        "steps": [*steps, Step("generators 1 -> 2", 40, 60)],
        "answers": [*answers, *more],
        "expected": {"a": "old", "b": "new"},
        "versions": ["a", "b"],
        "router": "r",
        "replaced": {"Gateway": True},
        "num_generators": [2, 1],
    }
    return Updated(**whole | fields)  # type: ignore[arg-type]


def broken(found: Updated) -> set[str]:
    return {each.name for each in judge(found) if not each.holds}


def test_run_in_which_all_went_well_holds():
    assert broken(seen()) == set()


@pytest.mark.parametrize(
    ("what", "figures"),
    [
        (answer(AUTO, 45, 46, status=503, error="busy"), {"answers"}),
        (answer(AUTO, 45, 46, is_degraded=True), {"answers"}),
        (answer(STREAM, 39, 45, error="cut off after 3 events"), {"answers", "running streams"}),
        (answer(STREAM, 12, 13, text="old and new", adapter="b"), {"adapter versions"}),
        (answer(STREAM, 12, 13), {"adapter versions"}),  # the old version, asked for after the load
        (answer(STREAM, 12, 13, text="base", adapter=None), {"adapter versions"}),
        (answer(WHOLE, 22, 23), {"unloaded"}),
        (answer(WHOLE, 15, 16, status=404, error="unknown"), {"answers"}),  # unknown before it was unloaded
        (answer(AUTO, 32, 33, router="score-rule-1"), {"router"}),
    ],
    ids=lambda each: "" if isinstance(each, set) else f"{each.kind.name} at {each.begun_s}: {each.error or each.text}",
)
def test_answer_that_is_not_as_it_should_be_is_found(what: Answer, figures: set[str]):
    assert broken(seen(what)) == figures


def test_run_that_shows_nothing_does_not_hold():
    assert broken(seen(replaced={"Gateway": False})) == broken(seen(num_generators=[2, 2])) == {"configuration"}
    assert broken(seen(expected={"a": "same", "b": "same"})) == {"adapter versions"}
    short = [replace(each, end_s=each.begun_s) for each in seen().answers]
    assert broken(seen(answers=short)) == {"running streams"}
    assert broken(seen(answers=[])) == {"answers", "running streams", "adapter versions", "router"}


def test_rows_say_what_became_of_the_requests_of_each_update():
    table = {row["update"]: row for row in rows(seen(answer(AUTO, 45, 50, status=503, error="busy")))}
    assert (table["generators 1 -> 2"]["requests"], table["generators 1 -> 2"]["failed"]) == (1, 1)
    assert table["generators 1 -> 2"]["took_s"] == 20 and table["generators 1 -> 2"]["slowest_s"] is None
    # Before, between and after; a name that is unknown since it was unloaded is no failure.
    assert (table["between them"]["requests"], table["between them"]["failed"]) == (5, 0)


def write_slow_model(folder: Path) -> Path:
    """A checkpoint whose streams of a few hundred tokens take a second or more on one core. Returns `folder`."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_node_service_is_updated_and_every_request_gets_its_answer(tmp_path: Path, tiny_sources):
    _, verdicts = run(
        tmp_path / "run",
        nodes=2,
        rate=1.0,
        max_tokens=300,
        generator=str(write_slow_model(tmp_path / "slow")),
        encoder=tiny_sources["encoder"],
    )
    assert not [each.words for each in verdicts if not each.holds]
