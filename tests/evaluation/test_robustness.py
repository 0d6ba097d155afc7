"""What changed questions do to decisions, worked out by hand: the server's signals say when the router must err."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest
from made_outcomes import KEYS
from made_router import artefact
from stub_arms import StubArms

from engine.errors import TrainingDataError
from engine.evaluation.changing import PARAPHRASES, SURFACE, TYPOS
from engine.evaluation.evaluate import evaluate_unseen, unseen_questions
from engine.evaluation.outcomes import ArmOutcome, Outcomes, QuestionOutcome
from engine.evaluation.questions import Question
from engine.evaluation.report import page, summary
from engine.evaluation.robustness import check_texts, measure_robustness

# Thirty of docs, ten of chat. Even ones need passages.
NUM, NUM_DOCS = 40, 30
QUESTIONS = tuple(
    Question(
        f"n{place}",
        f"Where is box {place} kept?",
        paraphrases={0: ("What place has box 0?", "Box 0: wrong where?"), 1: ("What place has box 1?",)}.get(place, ()),
    )
    for place in range(NUM)
)


def outcomes(with_texts=False):
    """Quality 1.0 with passages and 0.4 without for even ones, 0.2 and 0.8 for odd ones."""
    rows = []
    for place, each in enumerate(QUESTIONS):
        base, context = (0.4, 1.0) if place % 2 == 0 else (0.8, 0.2)
        arms = {"base": ArmOutcome(base, "f1", 10.0), "base+context": ArmOutcome(context, "f1", 30.0)}
        # Measured while n39 looked otherwise.
        s0 = 1.0 if place % 2 == 0 or place == 39 else -1.0
        source = "docs" if place < NUM_DOCS else "chat"
        text = each.question if with_texts else None
        rows.append(QuestionOutcome(each.id, source, {"s0": s0, "s1": 0.0}, arms, question=text))
    return Outcomes(KEYS, tuple(rows), "outcomes.jsonl")


def signals(text):
    """As if typos misled the search in chat, lower case in every fourth question, and paraphrases where they say so."""
    place = int(re.search(r"\d+", text)[0])
    misled = {
        "written": False,
        "surface": place % 4 == 0,
        "typos": place >= NUM_DOCS,
        "paraphrase": "wrong" in text,
    }
    kind = "typos"
    if text == QUESTIONS[place].question:
        kind = "written"
    elif not text.endswith("?"):
        kind = "surface"
    elif text in QUESTIONS[place].paraphrases:
        kind = "paraphrase"
    is_high = (place % 2 == 0) != misled[kind]
    return {"s0": 1.0 if is_high else -1.0, "s1": 0.0, "other": None}


@pytest.fixture
def stub():
    made = StubArms()
    made.digests = {"support": "adapter-1"}
    made.signals = signals
    return made


def measured(stub, questions=QUESTIONS, router=None, **options):
    router = router or artefact()

    async def run():
        async with stub.connect() as server:
            return await measure_robustness(server, router, unseen_questions(router, outcomes()), questions, **options)

    return asyncio.run(run())


def test_every_kind_has_its_share_of_decisions_and_what_the_others_cost(stub):
    found = measured(stub)
    assert (found.num_questions, found.num_without_text) == (40, 0)
    assert [each.kind for each in found.kinds] == [TYPOS, SURFACE, PARAPHRASES]
    typos, surface, paraphrases = found.kinds
    # Of chat every decision turns, of docs none; each costs 0.6, and the sources count alike.
    assert typos.unchanged.value == pytest.approx((1 + 0) / 2)
    assert (typos.before, typos.after) == pytest.approx((0.9, 0.9 - 0.6 / 2))
    # 8 of 30 and 2 of 10.
    assert surface.unchanged.value == pytest.approx((22 / 30 + 8 / 10) / 2)
    assert surface.difference.value == pytest.approx(-0.6 * (8 / 30 + 2 / 10) / 2)
    low, high = surface.difference.interval
    assert low < surface.difference.value < high < 0
    # Of the two texts of n0 one turns it: half a question, and no interval of two.
    assert (paraphrases.num_questions, paraphrases.num_texts) == (2, 3)
    assert paraphrases.unchanged.value == pytest.approx((1 / 2 + 1) / 2)
    assert (paraphrases.before, paraphrases.after) == pytest.approx((0.9, 0.75))
    assert paraphrases.difference.interval is None


def test_decisions_for_questions_as_written_are_compared_with_those_of_the_outcomes(stub):
    assert measured(stub).same_as_measured == pytest.approx((1 + 9 / 10) / 2)


def test_server_is_asked_for_signals_alone_of_first_and_changed_texts(stub):
    told = []
    measured(stub, collection="docs", listener=lambda num, total: told.append((num, total)))
    assert not stub.asked, "nothing is generated"
    asked = [body for body in stub.routed if body["signals"]]
    texts = [text for body in asked for text in body["input"]]
    assert texts[:NUM] == [each.question for each in QUESTIONS]
    assert len(texts) == NUM * 3 + 3
    assert {body["collection"] for body in asked} == {"docs"}
    assert max(len(body["input"]) for body in asked) <= 64
    assert told[-1] == (len(texts), len(texts))


def test_questions_that_the_file_lacks_are_left_out_and_counted(stub):
    found = measured(stub, QUESTIONS[:35])
    assert (found.num_questions, found.num_without_text) == (35, 5)
    assert found.kinds[0].unchanged.value == pytest.approx(1 / 2)


def test_what_cannot_be_measured_is_refused_with_the_fix(stub):
    with pytest.raises(TrainingDataError, match=r"none of the 1 questions has the id of one of the 40 .*'n0'"):
        measured(stub, [Question("x", "Who?")])
    with pytest.raises(TrainingDataError, match=r"is the best single arm.*Leave --robustness out"):
        measured(stub, router=artefact(is_learned=False))
    stub.signals = lambda text: {"s0": 1.0}
    with pytest.raises(TrainingDataError, match=r"lacks signals that router needs \(s1\)"):
        measured(stub)
    stub.digests = {"support": "adapter-2"}
    with pytest.raises(TrainingDataError, match=r"adapter support is adapter-2, was adapter-1.*--url, --collection"):
        measured(stub)


def test_file_of_other_texts_than_the_outcomes_is_refused():
    check_texts(outcomes(with_texts=True), QUESTIONS, "questions.jsonl")
    check_texts(outcomes(), [Question("n0", "Who?")], "questions.jsonl")
    with pytest.raises(TrainingDataError, match=r"questions.jsonl: question 'n0' has another text than in outcomes"):
        check_texts(outcomes(with_texts=True), [Question("n0", "Who?")], "questions.jsonl")


def test_report_and_lines_say_what_was_found(stub):
    evaluation = evaluate_unseen(artefact(), unseen_questions(artefact(), outcomes()), created="2026-01-02T03:04:05")
    assert evaluation.to_json()["robustness"] is None
    assert 'id="robustness"' not in page(evaluation)
    whole = replace(evaluation, robustness=measured(stub, QUESTIONS[2:]))
    written, lines = page(whole), summary(whole)
    assert re.findall(r'<section id="([a-z]+)"', written)[-2:] == ["robustness", "made"]
    assert "<td>50.0 %</td>" in written
    (line,) = [line for line in lines if line.startswith("  typos ")]
    assert line.split()[:6] == ["typos", "38", "50.0%", "0.900", "0.600", "-0.300"]
    assert "Not measured: paraphrases; the file of questions has none." in written
    assert "2 questions left out: the file of questions has no such id." in lines[-2]
    kinds = whole.to_json()["robustness"]["kinds"]
    assert [each["kind"] for each in kinds] == [TYPOS, SURFACE]
    assert kinds[0]["difference"]["value"] == pytest.approx(-0.3)
