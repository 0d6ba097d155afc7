"""A whole comparison on a made-up server: what is asked, kept, measured, changed and put back."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import httpx
import pytest
from compare_server import MadeServer, card
from json_server import transport

from engine.errors import SwitchyardError
from engine.evaluation import asking
from engine.evaluation.asking import Server
from engine.evaluation.compare.contenders import UnknownArm
from engine.evaluation.compare.documents import CHANGED_FILE, SCRATCH
from engine.evaluation.compare.few_shot import FewShot
from engine.evaluation.compare.job import CompareJob
from engine.evaluation.compare.running import draw_sample, run_comparison
from engine.evaluation.compare.updating import Update
from engine.evaluation.questions import Question
from engine.tuning.data.examples import read_examples

NUM = 40
THINGS = [f"thing{number}" for number in range(NUM)]
FACTS = {thing: f"code{number}" for number, thing in enumerate(THINGS)}
# The adapter knows every second code by heart.
MEMORY = {thing: FACTS[thing] for thing in THINGS[::2]}
QUESTIONS = tuple(
    Question(f"q{n}", f"What is the code of {thing}?", (FACTS[thing],), documents=(f"docs/{thing}.md",))
    for n, thing in enumerate(THINGS)
)
UPDATES = tuple(
    Update(
        id=f"docs/{thing}.md",
        text=f"The code of {thing} is changed{n}.",
        question=f"What is the code of {thing}?",
        answer_before=FACTS[thing],
        answer_after=f"changed{n}",
    )
    for n, thing in enumerate(THINGS[:3])
)


@pytest.fixture
def made():
    return MadeServer(FACTS, MEMORY, [card("bot")])


@pytest.fixture
def job(tmp_path):
    def make(**fields):
        known = {"origin": "q.jsonl", "created": "2026-01-01T00:00:00+00:00", "questions": QUESTIONS}
        return CompareJob(**(known | {"folder": tmp_path / "out", "data": tmp_path / "data"} | fields))

    return make


def run(job, made):
    async def compare():
        async with Server("http://server", transport=transport(made.reply)) as server:
            return await run_comparison(job, server)

    return asyncio.run(compare())


@pytest.fixture
def few_shot(tmp_path):
    lines = [{"question": f"What is the code of other{n}?", "answers": [f"other{n}"]} for n in range(9)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return FewShot(read_examples(file))


def test_every_arm_answers_every_question_and_the_best_one_is_told(made, job, few_shot):
    found = run(job(few_shot=few_shot), made).comparison
    means = {each.name: each.quality.value for each in found.arms}
    assert means == {"base": 0, "base+context": 1, "bot": 0.5, "bot+context": 1, "few-shot": 0, "auto": 1}
    assert found.pair("base+context", "base").finding == "better"
    assert found.pair("bot", "base+context").finding == "worse"
    assert found.pair("base+context", "bot+context").finding == "not distinguishable"
    # Of three equal ones that with fewest parts.
    assert found.recommended == "base+context"
    assert found.search.recall_5 == found.search.mrr_10 == 1.0
    hits = found.arm("base+context").hits
    assert (hits.rate, hits.quality_hit.value, hits.quality_miss) == (1.0, 1.0, None)
    assert found.arm("base+context").grounded == 1.0 and found.arm("bot").grounded is None
    assert found.arm("base").refused == 1.0
    assert found.bound.num_differ == NUM and found.bound.gain == 0.0
    assert found.refresh.num_chunks == 1
    shown = next(body for body in made.chats if len(body["messages"]) > 1)
    assert [turn["role"] for turn in shown["messages"]] == ["user", "assistant"] * 4 + ["user"]


def test_all_arms_are_asked_with_the_same_decoding(made, job):
    run(job(max_tokens=17), made)
    assert {(body["max_tokens"], body["temperature"]) for body in made.chats} == {(17, 0)}
    asked = {(body["model"], body["switchyard"]["route"]) for body in made.chats}
    assert asked == {("tiny", "direct"), ("tiny", "rag"), ("bot", "direct"), ("bot", "rag"), ("auto", "auto")}


def test_the_same_command_asks_nothing_again(made, job):
    first = run(job(), made).comparison
    asked = len(made.chats)
    assert asked == NUM * 5 + 5
    again = run(job(), made).comparison
    assert len(made.chats) == asked
    assert again.arms == first.arms and again.pairs == first.pairs


def test_a_run_that_lost_its_server_goes_on(made, job, monkeypatch):
    monkeypatch.setattr(asking, "_BREAK_S", 0.0)
    made.fail_after = 60
    with pytest.raises(SwitchyardError, match=r"kept in .*; the same command goes on"):
        run(job(), made)
    made.fail_after = None
    # The end of a line that was being written.
    answers = job().folder / "answers.jsonl"
    answers.write_bytes(answers.read_bytes() + b'{"key": "a", "ans')
    found = run(job(), made).comparison
    assert found.num_questions == NUM
    assert len(made.chats) < 60 + NUM * 5 + 5
    assert run(job(), made).comparison.arms == found.arms


def test_changed_weights_and_a_changed_knowledge_base_are_asked_anew(made, job):
    run(job(arms=("bot", "base+context")), made)
    asked = len(made.chats)
    made.adapters[0]["digest"] = "other"
    run(job(arms=("bot", "base+context")), made)
    assert {body["model"] for body in made.chats[asked:]} == {"bot"}
    asked = len(made.chats)
    made.write("default", "docs/new.md", "The code of new is new.")
    run(job(arms=("bot", "base+context")), made)
    assert {body["model"] for body in made.chats[asked:]} == {"tiny"}
    asked = len(made.chats)
    # Times of so many at once are no times of fewer.
    run(job(arms=("bot",), concurrency=1), made)
    assert len(made.chats) - asked == NUM + 1
    asked = len(made.chats)
    run(job(arms=("bot", "base+context"), restart=True), made)
    assert len(made.chats) - asked == 2 * NUM + 2


def test_another_router_is_asked_anew_and_no_other_arm(made, job):
    assert run(job(), made).comparison.setting.router == "router-1"
    asked = len(made.chats)
    made.router = "router-2"
    run(job(), made)
    assert {body["model"] for body in made.chats[asked:]} == {"auto"}
    made.router = None
    assert run(job(), made).comparison.setting.router is None


def test_arms_that_read_follow_a_changed_document_and_the_others_do_not(made, job):
    before = {id: (each["text"], each["title"]) for id, each in made.collections["default"].items()}
    found = run(job(updates=UPDATES), made).comparison
    counts = {each.arm: (each.num, each.right_before, each.followed, each.stale) for each in found.updates}
    assert counts["base+context"] == (3, 3, 3, 0)
    assert counts["bot"] == (3, 2, 0, 2)
    assert {id: (each["text"], each["title"]) for id, each in made.collections["default"].items()} == before
    assert not (job().folder / CHANGED_FILE).exists()
    assert made.collections[SCRATCH] == {}
    # The knowledge base holds what it held, so nothing is asked again but the test itself.
    asked = len(made.chats)
    run(job(), made)
    assert len(made.chats) == asked


def test_an_arm_that_fails_the_update_test_is_not_recommended(made, job):
    made.memory = FACTS
    made.adapters[0]["task"] = "classify"
    static = run(job(arms=("bot", "base+context")), made).comparison
    assert static.recommended == "bot"
    moving = run(job(arms=("bot", "base+context"), updates=UPDATES), made).comparison
    assert moving.recommended == "base+context"
    assert any("passages are needed whatever the quality" in reason for reason in moving.verdict.reasons)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_document_is_put_back_whatever_happens_while_it_is_changed(made, job, error):
    def interrupt():
        if "changed0" in made.collections["default"]["docs/thing0.md"]["text"]:
            raise error

    made.on_chat = interrupt
    with pytest.raises(error):
        run(job(updates=UPDATES), made)
    assert made.collections["default"]["docs/thing0.md"]["text"] == "The code of thing0 is code0."
    assert not (job().folder / CHANGED_FILE).exists()


@pytest.fixture
def ctrl_c():
    """As in a terminal: a job in the background of a shell is started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_until_the_document_is_put_back_however_often_it_is_pressed(made, job):
    plain = made.write

    def press():
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt():
        if "changed0" in made.collections["default"]["docs/thing0.md"]["text"]:
            press()

    def write(collection, id, text, title=None, metadata=None):
        if collection == "default" and "code0" in text:
            press()
        plain(collection, id, text, title, metadata)

    made.on_chat, made.write = interrupt, write
    with pytest.raises(KeyboardInterrupt):
        run(job(updates=UPDATES), made)
    assert made.collections["default"]["docs/thing0.md"]["text"] == "The code of thing0 is code0."
    assert not (job().folder / CHANGED_FILE).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_document_that_a_killed_run_left_changed_is_put_back_by_the_next_one(made, job, monkeypatch):
    monkeypatch.setattr(asking, "_BREAK_S", 0.0)
    monkeypatch.setattr(asking, "_MAX_BREAKS", 0)
    first = made.reply

    def gone(method, path, body):
        text = made.collections["default"]["docs/thing0.md"]["text"]
        if "changed0" in text:
            raise httpx.ConnectError("gone")
        return first(method, path, body)

    made.reply = gone
    with pytest.raises(SwitchyardError, match=r"docs/thing0.md.* is still changed.*the same command puts it back"):
        run(job(updates=UPDATES), made)
    made.reply = first
    assert "changed0" in made.collections["default"]["docs/thing0.md"]["text"]
    run(job(arms=("base",)), made)
    assert made.collections["default"]["docs/thing0.md"]["text"] == "The code of thing0 is code0."


def test_a_document_that_somebody_wrote_meanwhile_is_left_alone(made, job):
    folder = job().folder
    folder.mkdir(parents=True)
    before = {
        "collection": "default",
        "id": "docs/thing0.md",
        "text": "old",
        "title": None,
        "metadata": {},
        "chunks": 1,
    }
    (folder / CHANGED_FILE).write_text(json.dumps({"before": before, "changed_to": "0" * 64}))
    run(job(arms=("base",)), made)
    assert made.collections["default"]["docs/thing0.md"]["text"] == "The code of thing0 is code0."
    assert not (folder / CHANGED_FILE).exists()


def test_an_update_of_a_document_that_is_not_there_is_told_and_not_tried(made, job):
    missing = Update(id="docs/none.md", text="a", question="b", answer_before="c", answer_after="d")
    found = run(job(updates=(missing,), arms=("base+context",)), made).comparison
    assert found.updates == ()
    assert "has no document 'docs/none.md'" in found.updates_skipped[0]


def test_a_document_that_cannot_be_put_back_is_not_touched(made, job):
    plain = made.write

    def write(collection, id, text, title=None, metadata=None):
        plain(collection, id, text, title, metadata)
        made.collections[collection][id]["chunks"] = 7 if collection == SCRATCH else 1

    made.write = write
    found = run(job(updates=UPDATES[:1], arms=("base+context",)), made).comparison
    assert "could not be put back as it was" in found.updates_skipped[0]
    assert not [each for each in made.writes if each[0] == "default"]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (("base", "nobody"), "there is no arm nobody: the server has no adapter 'nobody'; it has: bot, idle"),
        (("idle+context",), "arm idle\\+context cannot answer: adapter 'idle' is not loaded"),
        (("few-shot",), "needs training examples to show: --few-shot TRAIN.jsonl"),
    ],
)
def test_arms_that_the_server_does_not_have_are_named(made, job, arms, said):
    made.adapters.append(card("idle", loaded=False))
    with pytest.raises(UnknownArm, match=said):
        run(job(arms=arms), made)
    assert made.chats == []


def test_arms_with_passages_are_left_out_of_an_empty_knowledge_base(job):
    made = MadeServer({}, MEMORY, [card("bot")])
    found = run(job(), made).comparison
    assert [each.name for each in found.arms] == ["base", "bot"]
    assert found.refresh is None and found.search is None
    with pytest.raises(UnknownArm, match="the collection is empty"):
        run(job(arms=("base+context",)), made)


def test_three_questions_say_what_cannot_be_said(made, job):
    found = run(job(questions=QUESTIONS[:3]), made).comparison
    assert found.recommended is None and found.tone == "bad"
    assert "3 questions can show no difference" in found.verdict.headline
    assert {each.finding for each in found.pairs} == {"too few"}
    assert all(each.quality.interval is None for each in found.arms)


def test_an_adapter_of_risky_data_is_marked_and_not_recommended(made, job):
    made.memory = FACTS
    made.adapters[0]["verdict"] = "risky"
    found = run(job(arms=("base", "bot")), made).comparison
    assert found.best == "bot" and found.recommended == "base"
    assert "the guard called its training data risky" in found.arm("bot").untrusted


def test_questions_that_stand_in_the_training_data_make_an_adapter_untrusted(made, job, tmp_path):
    file = tmp_path / "leaking.jsonl"
    rows = [{"question": q.question.upper(), "answers": list(q.answers)} for q in QUESTIONS[:5]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read_examples(file)
    made.adapters[0]["data_digest"] = examples.digest
    found = run(job(arms=("bot", "few-shot"), few_shot=FewShot(examples)), made).comparison
    assert "5 of 40 questions stand in its training data" in found.arm("bot").untrusted
    # The example that is the question itself is not shown.
    shown = [body["messages"] for body in made.chats if len(body["messages"]) > 1]
    assert all(turns[-1]["content"].upper() not in [turn["content"].upper() for turn in turns[:-1]] for turns in shown)


def test_tuning_minutes_are_those_of_the_report_of_the_same_data_and_figures(made, job):
    folder = job().data / "tuning" / "bot"
    folder.mkdir(parents=True)
    outcome = {
        "data_digest": "data-bot",
        "evaluations": [{"slices": [{"name": "all", "after": {"f1": 0.5}}]}],
        "run": {"minutes": 12.5},
    }
    (folder / "report.json").write_text(json.dumps({"outcome": outcome}))
    assert run(job(), made).comparison.arm("bot").tuning_minutes == 12.5
    made.adapters[0]["data_digest"] = "other"
    assert run(job(), made).comparison.arm("bot").tuning_minutes is None


def test_a_sample_is_drawn_once_and_for_all():
    first = draw_sample(QUESTIONS, 10, 3)
    assert len(first) == 10 and first == draw_sample(QUESTIONS, 10, 3) != draw_sample(QUESTIONS, 10, 4)
    assert draw_sample(QUESTIONS, 1_000, 0) == QUESTIONS
