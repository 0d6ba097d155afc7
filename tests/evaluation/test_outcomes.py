"""Files of outcomes: what is written is read, bad lines are named with the fix, and files become one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_outcomes import KEYS, decided_by_first, made

from engine.errors import TrainingDataError
from engine.evaluation.outcome_lines import read_outcomes
from engine.evaluation.outcomes import ArmOutcome, merge_outcomes, write_outcomes
from engine.tuning.data.limits import DataLimits

HEAD = {"_keys": KEYS.to_json()}
ARM = {"quality": 1.0, "metric": "exact_match", "latency_ms": 12.5}
ROW = {"id": "q1", "source": "docs", "signals": {"s0": 1, "s1": None}, "arms": {"base": ARM}}


def write(path, *lines):
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def refused(path, **limits):
    with pytest.raises(TrainingDataError) as caught:
        read_outcomes([path], DataLimits(**limits) if limits else None)
    return str(caught.value)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_outcomes_come_back_as_they_were_written(tmp_path, name):
    outcomes = made(7, decided_by_first, unknown=0.5, with_texts=True, embeddings="noise", group_size=2)
    write_outcomes(outcomes, tmp_path / name)
    found = read_outcomes([tmp_path / name])
    assert (found.keys, found.questions) == (outcomes.keys, outcomes.questions)
    assert found.arms == ("base", "base+context")


def test_texts_and_what_they_could_be_guessed_from_can_be_left_out(tmp_path):
    outcomes = made(3, decided_by_first, with_texts=True, embeddings="noise")
    write_outcomes(outcomes, tmp_path / "out.jsonl", with_texts=False)
    content = (tmp_path / "out.jsonl").read_text()
    assert "what is" not in content
    assert "embedding" not in content
    found = read_outcomes([tmp_path / "out.jsonl"])
    assert found.questions == tuple(replace(each, question=None, embedding=None) for each in outcomes.questions)


def test_arm_that_gave_an_error_needs_no_quality(tmp_path):
    failed = {"quality": None, "metric": "exact_match", "latency_ms": None, "error": "timed out"}
    path = write(tmp_path / "a.jsonl", HEAD, {**ROW, "arms": {"base": failed}})
    assert read_outcomes([path]).questions[0].arms["base"] == ArmOutcome(None, "exact_match", None, error="timed out")


@pytest.mark.parametrize("lines", [[], [""], [HEAD]])
def test_file_without_an_outcome_is_refused_with_its_shape(tmp_path, lines):
    assert 'holds no outcome. The first line is {"_keys": ...}' in refused(write(tmp_path / "a.jsonl", *lines))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is list, not an object"),
        ('{"id": NaN}', "line 2: NaN is no number in JSON; write null"),
        ({**ROW, "id": ""}, "line 2: id: string should have at least 1 character"),
        ({**ROW, "surprise": 1}, "line 2: surprise: extra inputs are not permitted"),
        ({**ROW, "signals": {"s0": "1"}}, 'line 2: signals.s0: input should be a valid number (it is "1")'),
        ({**ROW, "arms": {}}, "line 2: arms: dictionary should have at least 1 item"),
        ({**ROW, "arms": {"base": {**ARM, "quality": 1.5}}}, "base.quality: input should be less than or equal to 1"),
        ({**ROW, "arms": {"base": {**ARM, "latency_ms": -1}}}, "arms.base.latency_ms"),
        ({**ROW, "arms": {"base": {**ARM, "quality": None}}}, "base: has neither quality and latency_ms nor an error"),
        ({**ROW, "arms": {"base": {**ARM, "refused": 1}}}, "arms.base.refused"),
        ({**ROW, "arms": {"ba se": ARM}}, "'ba se' is no arm; write base"),
        ({**ROW, "arms": {"other": ARM}}, "_keys has no digest of adapter 'other'"),
    ],
)  # fmt: skip
def test_bad_line_is_named_with_what_it_should_be(tmp_path, line, said):
    assert said in refused(write(tmp_path / "a.jsonl", HEAD, line))


def test_every_bad_line_is_among_the_problems(tmp_path):
    path = write(tmp_path / "a.jsonl", HEAD, "{", ROW, "[]")
    with pytest.raises(TrainingDataError, match="1 more bad lines follow") as caught:
        read_outcomes([path])
    assert [each.split(":")[0] for each in caught.value.problems] == ["line 2", "line 4"]


def test_id_that_was_used_before_is_refused_with_its_line(tmp_path):
    assert "line 3: id 'q1' is that of line 2" in refused(write(tmp_path / "a.jsonl", HEAD, ROW, ROW))


@pytest.mark.parametrize("first", [ROW, {"_keys": 3}, {"_keys": {}}, {**HEAD, "more": 1}])
def test_file_must_begin_with_its_keys(tmp_path, first):
    assert "line 1: " in refused(write(tmp_path / "a.jsonl", first, ROW))


def test_arm_with_passages_needs_the_digest_of_an_index(tmp_path):
    head = {"_keys": replace(KEYS, index=None).to_json()}
    row = {**ROW, "arms": {"base+context": ARM}}
    assert "no digest of the index" in refused(write(tmp_path / "a.jsonl", head, row))


def test_embeddings_of_two_widths_are_refused(tmp_path):
    rows = [{**ROW, "id": str(width), "embedding": [0.5] * width} for width in (2, 3)]
    assert "embeddings of 2, 3 numbers" in refused(write(tmp_path / "a.jsonl", HEAD, *rows))


def test_limits_of_a_file_hold(tmp_path):
    path = write(tmp_path / "a.jsonl", HEAD, *({**ROW, "id": str(row)} for row in range(4)))
    assert "more than 3 questions" in refused(path, max_rows=3)


def test_files_of_other_questions_and_of_other_arms_become_one():
    first = made(3, decided_by_first, arms=("base",), name="a")
    arms = made(3, decided_by_first, arms=("support",), name="a")
    arms = replace(arms, questions=tuple(replace(each, signals={"new": 1.0}) for each in arms.questions))
    others = made(2, decided_by_first, arms=("base",), name="b", keys=replace(KEYS, adapters={"tone": "t1"}))
    merged = merge_outcomes([first, arms, others])
    assert [each.id for each in merged.questions] == ["a0", "a1", "a2", "b0", "b1"]
    assert {*merged.questions[0].arms} == {"base", "support"}
    assert {*merged.questions[0].signals} == {"s0", "s1", "s2", "new"}
    assert merged.keys.adapters == {"support": "adapter-1", "tone": "t1"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"index": "index-2"}, "index is index-2, was index-1"),
        ({"model": "model-2"}, "model is model-2"),
        ({"adapters": {"support": "adapter-2"}}, "adapter support is adapter-2"),
    ],
)
def test_files_of_different_keys_are_not_merged(changed, said):
    other = made(3, decided_by_first, name="b", keys=replace(KEYS, **changed))
    with pytest.raises(TrainingDataError, match=said):
        merge_outcomes([made(3, decided_by_first), other])


def test_keys_that_two_later_files_disagree_on_are_found():
    parts = [
        made(1, decided_by_first, name=name, keys=replace(KEYS, adapters=adapters))
        for name, adapters in (("a", {}), ("b", {"tone": "1"}), ("c", {"tone": "2"}))
    ]
    with pytest.raises(TrainingDataError, match="adapter tone is 2, was 1"):
        merge_outcomes(parts)


def test_question_with_two_outcomes_of_one_arm_is_refused():
    with pytest.raises(TrainingDataError, match="'q0' has another outcome of signal 's0'"):
        merge_outcomes([made(1, decided_by_first), made(1, decided_by_first, seed=5)])
    assert len(merge_outcomes([made(1, decided_by_first), made(1, decided_by_first)]).questions) == 1
