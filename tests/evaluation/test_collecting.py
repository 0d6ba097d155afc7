"""Every arm on every question: what is asked, kept, taken up again and refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from stub_arms import StubArms

from engine.errors import SwitchyardError
from engine.evaluation.collecting import Answered, Began, CollectOptions, SignalsRead, collect
from engine.evaluation.outcome_lines import read_outcomes
from engine.evaluation.outcomes import write_outcomes
from engine.evaluation.questions import Question
from engine.http_errors import ServerError

QUESTIONS = tuple(Question(f"q{number}", f"Who is {number}?", ("Ada",), group=f"g{number}") for number in range(40))
ARMS = ("base", "base+context")


@pytest.fixture
def stub():
    return StubArms()


def collected(stub, work, questions=QUESTIONS, restart=False, listener=lambda event: None, **options):
    async def run():
        async with stub.connect() as server:
            made = CollectOptions(**{"arms": ARMS, "concurrency": 4, **options})
            return await collect(server, questions, made, work, restart=restart, listener=listener)

    return asyncio.run(run())


def stopped(stub, work, after, change=None, **options):
    """A call that the server's `change` ends after so many answers; by default it says that it has failed."""
    stub.after = (after, change or (lambda: stub.refusals.append((500, "internal"))))
    with pytest.raises(SwitchyardError) as caught:
        collected(stub, work, **options)
    stub.after = None
    return str(caught.value)


def asked_questions(stub):
    return [(arm, text) for arm, text in stub.asked if text.startswith("Who")]


def test_paraphrases_are_not_asked_and_make_no_other_collection(stub, tmp_path):
    stopped(stub, tmp_path / "work", 30)
    with_others = tuple(replace(each, paraphrases=("Which one?",)) for each in QUESTIONS)
    collected(stub, tmp_path / "work", with_others)
    assert not any("Which" in text for _, text in stub.asked)


def test_every_arm_answers_every_question_and_the_file_can_be_read(stub, tmp_path):
    outcomes = collected(stub, tmp_path / "work")
    assert Counter(arm for arm, _ in asked_questions(stub)) == {"base": 40, "base+context": 40}
    write_outcomes(outcomes, tmp_path / "out.jsonl")
    found = read_outcomes([tmp_path / "out.jsonl"])
    assert (found.keys, found.questions) == (outcomes.keys, outcomes.questions)
    first = found.questions[0]
    assert (first.id, first.group, first.question) == ("q0", "g0", "Who is 0?")
    assert (first.arms["base"].quality, first.arms["base+context"].quality) == (1.0, 0.0)
    assert (first.arms["base+context"].tokens_in, first.arms["base"].metric) == (130, "f1")


def test_keys_name_what_answered_and_how_it_was_asked(stub, tmp_path):
    keys = collected(stub, tmp_path / "work", arms=("base", "bot"), max_tokens=9).keys
    assert (keys.model, keys.index, keys.encoder) == ("model-1", "index-1", "encoder-1")
    assert keys.adapters == {"bot": "digest-bot"}
    assert keys.others == {"concurrency": "4 at once", "max_tokens": "9"}


def test_arms_take_turns_in_an_order_that_the_seed_draws(stub, tmp_path):
    collected(stub, tmp_path / "a", concurrency=1)
    order = asked_questions(stub)
    pairs = [order[place : place + 2] for place in range(0, len(order), 2)]
    assert all({arm for arm, _ in pair} == {*ARMS} and pair[0][1] == pair[1][1] for pair in pairs)
    assert 5 < sum(pair[0][0] == "base" for pair in pairs) < 35
    assert [pair[0][1] for pair in pairs] != [each.question for each in QUESTIONS]
    stub.asked.clear()
    collected(stub, tmp_path / "b", concurrency=1)
    assert asked_questions(stub) == order
    stub.asked.clear()
    collected(stub, tmp_path / "c", concurrency=1, seed=1)
    assert asked_questions(stub) != order


def test_signals_of_the_questions_own_outcomes_are_left_out(stub, tmp_path):
    first = collected(stub, tmp_path / "work").questions[0]
    assert first.signals == {"lexical.tokens": 4.0, "search.z_best": 3.123457, "search.gap": None}
    assert first.embedding is None


def test_embeddings_are_kept_where_asked_for(stub, tmp_path):
    assert collected(stub, tmp_path / "work", with_embeddings=True).questions[0].embedding == (0.6, 0.8)
    assert all(len(body["input"]) <= 64 for body in stub.routed if body.get("embeddings"))


def test_labels_adapter_answers_without_passages_unless_named(stub, tmp_path):
    outcomes = collected(stub, tmp_path / "a", QUESTIONS[:1], arms=None)
    assert outcomes.arms == ("base", "base+context", "bot", "bot+context", "labels")
    # A server need not list an arm that makes no sense.
    stub.arms.remove("labels+context")
    outcomes = collected(stub, tmp_path / "b", QUESTIONS[:1], arms=("base", "labels+context"))
    assert outcomes.arms == ("base", "labels+context")


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (("base", "other"), "arm 'other' cannot answer now; base, base+context, bot"),
        (("ba se",), "arm 'ba se' is no arm"),
        ((), "--arms names no arm"),
    ],
)
def test_arm_that_cannot_answer_is_named_before_anything_is_asked(stub, tmp_path, arms, said):
    with pytest.raises(SwitchyardError, match=said.replace("+", "[+]")):
        collected(stub, tmp_path / "work", arms=arms)
    assert not stub.asked


def test_stopped_call_goes_on_where_it_was(stub, tmp_path):
    assert stopped(stub, tmp_path / "work", after=30) == "refused with 500"
    num_before, num_routed = len(asked_questions(stub)), len(stub.routed)
    assert num_before >= 25
    events = []
    outcomes = collected(stub, tmp_path / "work", listener=events.append)
    began, *others = events
    kept = sum(map(len, began.kept.values()))
    assert began.num_signals == 40
    # What was under way when the server failed may be asked twice.
    assert num_before - 4 <= kept <= num_before
    assert len(others) == 80 - kept
    assert len(stub.routed) == num_routed + 2, "signals are read once; what is left are the keys, before and after"
    assert all(each.arms.keys() == {*ARMS} for each in outcomes.questions)


def test_restart_begins_anew(stub, tmp_path):
    stopped(stub, tmp_path / "work", after=30)
    events = []
    collected(stub, tmp_path / "work", listener=events.append, restart=True)
    assert events[0].kept == {"base": [], "base+context": []}


def test_listener_hears_of_every_answer(stub, tmp_path):
    events = []
    collected(stub, tmp_path / "work", listener=events.append)
    assert events[0] == Began(ARMS, 40, 80, 0, {"base": [], "base+context": []})
    assert [each.num for each in events if isinstance(each, SignalsRead)] == [32, 40]
    assert Counter(each.arm for each in events if isinstance(each, Answered)) == {"base": 40, "base+context": 40}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"max_tokens": 9}, "max_tokens was 64 and is now 9"),
        ({"concurrency": 2}, "concurrency was 4 and is now 2"),
        ({"arms": ("base", "bot")}, "arms was base,base[+]context and is now base,bot"),
        ({"questions": QUESTIONS[:39]}, "questions was 40 [(].* and is now 39"),
    ],
)
def test_stopped_call_does_not_go_on_as_another(stub, tmp_path, other, said):
    stopped(stub, tmp_path / "work", after=30)
    with pytest.raises(SwitchyardError, match=said):
        collected(stub, tmp_path / "work", **other)


def test_adapter_that_was_replaced_between_two_calls_is_named(stub, tmp_path):
    stopped(stub, tmp_path / "work", after=30, arms=("base", "bot"))
    stub.digests["bot"] = "digest-new"
    with pytest.raises(SwitchyardError, match="adapter bot was digest-bot and is now digest-new"):
        collected(stub, tmp_path / "work", arms=("base", "bot"))


def test_adapter_that_is_replaced_meanwhile_is_named(stub, tmp_path):
    said = stopped(
        stub, tmp_path / "work", after=30, change=lambda: stub.digests.update(bot="digest-new"), arms=("base", "bot")
    )
    assert "while answers were collected, adapter 'bot' was replaced" in said


def test_adapter_that_nobody_asked_may_change(stub, tmp_path):
    stub.after = (30, lambda: stub.digests.update(bot="digest-new"))
    assert len(collected(stub, tmp_path / "work").questions) == 40


def test_documents_that_change_meanwhile_are_named(stub, tmp_path):
    said = stopped(stub, tmp_path / "work", after=30, change=lambda: setattr(stub, "index_version", 8))
    assert "the documents changed: version 8, was 7. Outcomes of both cannot be mixed" in said


def test_documents_that_changed_between_two_calls_are_named(stub, tmp_path):
    stopped(stub, tmp_path / "work", after=30)
    stub.index_version = 8
    with pytest.raises(SwitchyardError, match="the documents changed: version 8, was 7"):
        collected(stub, tmp_path / "work")


def test_arm_that_is_gone_at_the_end_is_named(stub, tmp_path):
    said = stopped(stub, tmp_path / "work", after=60, change=lambda: stub.arms.remove("base+context"))
    assert "base+context can answer no more" in said


def test_failed_answers_are_in_the_outcomes_and_asked_again_by_the_next_call(stub, tmp_path):
    # Each arm has one question before that counts for nothing.
    stub.after = (2, lambda: stub.refusals.extend([(408, "deadline_exceeded")] * 3))
    outcomes = collected(stub, tmp_path / "work")
    failed = [arm.error for each in outcomes.questions for arm in each.arms.values() if arm.error]
    assert failed == ["refused with 408"] * 3
    stub.after, num_before = None, len(asked_questions(stub))
    outcomes = collected(stub, tmp_path / "work")
    assert len(asked_questions(stub)) == num_before + 3
    assert not any(arm.error for each in outcomes.questions for arm in each.arms.values())


def test_server_without_route_is_refused_with_the_fix(tmp_path):
    class Older(StubArms):
        def answer(self, method, path, body):
            return super().answer(method, "/nowhere" if path == "/v1/route" else path, body)

    with pytest.raises(SwitchyardError, match="the server has no /v1/route"):
        collected(Older(), tmp_path / "work")


def test_collection_that_is_not_there_is_said_as_the_server_does(tmp_path):
    class Empty(StubArms):
        def answer(self, method, path, body):
            if path == "/v1/route":
                assert body["collection"] == "docs"
                return 404, {"error": {"message": "collection 'docs' is unknown", "code": "collection_not_found"}}
            return super().answer(method, path, body)

    with pytest.raises(ServerError, match="collection 'docs' is unknown"):
        collected(Empty(), tmp_path / "work", collection="docs")


def test_file_with_a_foreign_line_is_refused(stub, tmp_path):
    stopped(stub, tmp_path / "work", after=30)
    with (tmp_path / "work").open("a") as file:
        file.write('{"id": "q1"}\n')
    with pytest.raises(SwitchyardError, match="holds a line that `router collect` did not write"):
        collected(stub, tmp_path / "work")
