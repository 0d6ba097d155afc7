"""What may follow: masks equal single checks, states go back, and answers end where the grammar does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from engine.generation.grammar.compiler import GrammarCompiler
from engine.generation.grammar.matcher import MaskFiller, Matcher
from engine.values import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
END, OTHER_END = 2, 0
HOSTILE_CHOICES = ['a"b', "\\", "a\nb", "é漢😀", "/x/", "${}", "\x00", "\u2028", " ", "a|b"]


@pytest.fixture(scope="module")
def compiler(tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, {END, OTHER_END}, len(tokenizer))
    yield compiler
    compiler.close()


def start(compiler: GrammarCompiler, kind, source: str) -> Matcher:
    return compiler.compile(Grammar(kind, source)).result(timeout=60).start()


def test_the_mask_forbids_exactly_the_tokens_that_are_not_allowed_one_by_one(compiler, tokenizer):
    vocabulary = len(tokenizer)
    masks = MaskFiller(vocabulary, compiler.mask_size)
    matcher = start(compiler, "json_schema", json.dumps(SCHEMA))
    for token in tokenizer.encode('{"a": -12}', add_special_tokens=False):
        forbidden = masks.forbidden([matcher])[0]
        expected = [matcher.num_allowed([candidate]) == 0 for candidate in range(vocabulary)]
        assert forbidden.tolist() == expected
        assert forbidden[END] and forbidden[OTHER_END]
        matcher.accept(token)
    assert matcher.is_complete and matcher.failure is None


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_masks_of_many_are_those_of_each_alone(compiler, tokenizer, count):
    masks = MaskFiller(len(tokenizer), compiler.mask_size)
    matchers = []
    for index in range(count):
        matcher = start(compiler, "regex", f"[a-{chr(ord('b') + index)}]+x?")
        matcher.accept(tokenizer.encode("a")[0])
        matchers.append(matcher)
    together = masks.forbidden(matchers)
    assert together.shape == (count, len(tokenizer))
    assert all(torch.equal(together[i], masks.forbidden([matcher])[0]) for i, matcher in enumerate(matchers))
    assert len({tuple(row.tolist()) for row in together}) == count


def test_an_end_token_is_allowed_where_the_text_matches_and_nowhere_else(compiler, tokenizer):
    matcher = start(compiler, "regex", "ab?")
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    assert matcher.num_allowed([END]) == 0
    matcher.accept(a)
    assert matcher.num_allowed([END]) == matcher.num_allowed([OTHER_END]) == 1
    assert not matcher.is_complete
    matcher.accept(b)
    assert matcher.is_complete


def test_drafts_are_cut_at_the_first_token_that_may_not_follow_and_asking_changes_nothing(compiler, tokenizer):
    masks = MaskFiller(len(tokenizer), compiler.mask_size)
    matcher = start(compiler, "json_schema", json.dumps(SCHEMA))
    draft = tokenizer.encode('{"a": 1x', add_special_tokens=False)
    before = masks.forbidden([matcher])
    assert matcher.num_allowed(draft) == len(draft) - 1
    assert torch.equal(masks.forbidden([matcher]), before)
    matcher.accept(draft[0])
    assert not torch.equal(masks.forbidden([matcher]), before)
    assert matcher.failure is None


def test_a_token_that_may_not_follow_is_a_failure_and_then_everything_is_allowed(compiler, tokenizer):
    masks = MaskFiller(len(tokenizer), compiler.mask_size)
    broken, sound = (start(compiler, "regex", "abc") for _ in range(2))
    broken.accept(tokenizer.encode("z")[0])
    assert broken.failure
    forbidden = masks.forbidden([broken, sound])
    assert not forbidden[0].any() and forbidden[1].any()
    assert not broken.is_complete and broken.num_allowed([5, 6]) == 2


def test_every_text_of_a_choice_is_allowed_whatever_its_characters(compiler, tokenizer):
    for choice in HOSTILE_CHOICES:
        matcher = start(compiler, "choice", json.dumps(HOSTILE_CHOICES))
        tokens = tokenizer.encode(choice, add_special_tokens=False)
        assert matcher.num_allowed(tokens) == len(tokens), choice
        for token in tokens:
            matcher.accept(token)
        assert matcher.is_complete or matcher.num_allowed([END]) == 1, choice


@pytest.mark.parametrize("count", [1, 10])
def test_masks_behind_a_draft_are_those_of_a_matcher_that_went_on_by_it(compiler, tokenizer, count):
    masks = MaskFiller(len(tokenizer), compiler.mask_size)
    matchers = [start(compiler, "json_schema", json.dumps(SCHEMA)) for _ in range(count)]
    tokens = tokenizer.encode('{"a": -12', add_special_tokens=False)
    drafts = [tokens[: index % len(tokens)] for index in range(count - 1)] + [tokens]
    rows = iter(masks.forbidden(matchers, drafts))
    for draft in drafts:
        alone = start(compiler, "json_schema", json.dumps(SCHEMA))
        assert torch.equal(next(rows), masks.forbidden([alone])[0])
        for token in draft:
            alone.accept(token)
            assert torch.equal(next(rows), masks.forbidden([alone])[0])
    assert next(rows, None) is None
    fresh = masks.forbidden([start(compiler, "json_schema", json.dumps(SCHEMA))])[0]
    assert all(torch.equal(masks.forbidden([matcher])[0], fresh) for matcher in matchers)


def test_nothing_is_forbidden_behind_a_draft_that_may_not_follow(compiler, tokenizer):
    masks = MaskFiller(len(tokenizer), compiler.mask_size)
    matcher = start(compiler, "regex", "abc")
    a, z = (tokenizer.encode(letter)[0] for letter in "az")
    forbidden = masks.forbidden([matcher], [[a, z, a]])
    assert [bool(row.any()) for row in forbidden] == [True, True, False, False]
    assert matcher.failure is None and matcher.num_allowed([a]) == 1
