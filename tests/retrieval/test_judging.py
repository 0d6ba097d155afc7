"""Judgements through the retriever: what is fitted, for whom, until when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from executors import HeldExecutor, ImmediateExecutor
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import InvalidRequest, UnknownCollection
from engine.retrieval import judging
from engine.retrieval.store import judgements as stored
from engine.values import DocumentWrite, Evidence, Judgement, Query

# Each page has a word of its own, which is its question: words alone find that page and no other.
NUM_PAGES = 110


def page(number: int) -> DocumentWrite:
    return DocumentWrite(f"site/{number}", f"word{number} about things{number % 7} and more".encode(), "text/plain")


def question(number: int) -> str:
    return f"word{number}"


def judgement(number: int, grade: int = 1) -> Judgement:
    return Judgement(question(number), f"site/{number}", grade)


@pytest.fixture
def judged(open_retriever):
    """Opens a retriever with all pages for the tenants "" and "acme", whose fits run at once."""

    def open_one(executor=None, **options):
        retriever = open_retriever(fitting=executor or ImmediateExecutor(), **options)
        for tenant in ("", "acme"):
            retriever.write("docs", [page(number) for number in range(NUM_PAGES)], tenant=tenant)
        return retriever

    return open_one


def scores(retriever, tenant: str = "", number: int = 3) -> list[float]:
    (found,) = retriever.evidence([Query(question(number), "docs", 20, tenant=tenant)])
    assert isinstance(found, Evidence)
    return [passage.score for passage in found.passages]


def judge_all(retriever, tenant: str = "", count: int = 100) -> None:
    retriever.judge("docs", [judgement(number) for number in range(count)], tenant=tenant)


@pytest.fixture
def words_win(monkeypatch):
    """A fit whose outcome is known: words alone."""
    real = judging.fit

    def fit(judged, default):
        found = real(judged, default)
        return found and replace(found, alpha=0.0, is_used=True)

    monkeypatch.setattr(judging, "fit", fit)


def test_hundred_judged_queries_are_fitted_and_99_say_that_one_is_missing(judged):
    retriever = judged()
    judge_all(retriever, count=99)
    found = retriever.judgements("docs")
    assert (found["judgements"], found["queries"], found["missing"]) == (99, 99, 1)
    assert (found["fit"], found["weight"], found["is_fitting"]) == (None, None, False)
    assert retriever.judge("docs", [judgement(99)]) == ["created"]
    found = retriever.judgements("docs")
    assert (found["queries"], found["missing"], found["problem"]) == (100, 0, None)
    assert (found["fit"]["num_fitted"], found["fit"]["num_held_out"]) == (50, 50)
    assert found["fit"]["lexical"] == 1.0 == found["fit"]["default"]
    assert found["fit"]["is_used"] and found["weight"] == found["fit"]["alpha"]


def test_grade_0_and_documents_that_are_not_there_count_as_nothing(judged):
    retriever = judged()
    judge_all(retriever, count=98)
    retriever.judge("docs", [judgement(98, 0), Judgement(question(99), "site/none", 1)])
    found = retriever.judgements("docs")
    assert (found["judgements"], found["queries"], found["unknown_documents"]) == (100, 98, 1)
    assert found["fit"] is None


def test_documents_that_are_gone_are_left_out_of_the_next_fit(judged):
    retriever = judged()
    judge_all(retriever, count=101)
    retriever.write("docs", [DocumentWrite(f"site/{number}", delete=True) for number in range(2)])
    found = retriever.judgements("docs")
    assert (found["queries"], found["missing"], found["unknown_documents"]) == (99, 1, 2)
    assert found["fit"] is not None, "a fit stays until a judgement changes"
    retriever.judge("docs", [judgement(50, 2)])
    found = retriever.judgements("docs")
    assert (found["fit"], found["weight"]) == (None, None)


def test_searches_of_the_tenant_alone_use_the_fitted_weight_and_stop_when_judgements_are_removed(judged, words_win):
    retriever = judged()
    before = scores(retriever)
    assert len(before) == 20
    judge_all(retriever, "acme")
    assert scores(retriever) == before
    assert scores(retriever, "acme") == [1.0], "words alone find one page"
    assert retriever.judgements("docs")["judgements"] == 0
    assert retriever.forget_judgements("docs") == 0
    assert scores(retriever, "acme") == [1.0]
    assert retriever.forget_judgements("docs", tenant="acme") == 100
    assert scores(retriever, "acme") == before
    found = retriever.judgements("docs", tenant="acme")
    assert (found["judgements"], found["fit"], found["weight"], found["is_fitting"]) == (0, None, None, False)


def test_fit_survives_a_restart_without_being_made_again(judged, open_retriever, words_win):
    retriever = judged()
    judge_all(retriever)
    kept = retriever.judgements("docs")
    retriever.close()
    held = HeldExecutor()
    again = open_retriever(fitting=held)
    assert held.run() == 0
    assert scores(again) == [1.0]
    assert again.judgements("docs") == kept


def test_fit_that_a_restart_cut_off_is_made_afterwards(judged, open_retriever, words_win):
    retriever = judged(HeldExecutor())
    judge_all(retriever)
    assert retriever.judgements("docs")["is_fitting"]
    assert len(scores(retriever)) == 20
    retriever.close()
    held = HeldExecutor()
    again = open_retriever(fitting=held)
    assert again.judgements("docs")["is_fitting"] and len(scores(again)) == 20
    assert held.run() == 1
    assert scores(again) == [1.0] and not again.judgements("docs")["is_fitting"]


def test_another_default_fusion_is_compared_anew_at_the_next_start(judged, open_retriever):
    retriever = judged()
    judge_all(retriever)
    retriever.close()
    held = HeldExecutor()
    again = open_retriever(settings=SETTINGS.model_copy(update={"fusion": "ranks"}), fitting=held)
    assert held.run() == 1
    assert again.judgements("docs")["fit"] is not None


def test_judgements_that_change_during_a_fit_are_fitted_as_well(judged, monkeypatch):
    held = HeldExecutor()
    retriever = judged(held)
    judge_all(retriever)
    encode = StubEncoder.encode
    changes = iter([judgement(100), judgement(101)])

    def change_then_encode(self, texts, *, is_query=False):
        for one in changes:
            retriever.judge("docs", [one])
        return encode(self, texts, is_query=is_query)

    monkeypatch.setattr(StubEncoder, "encode", change_then_encode)
    assert held.run() == 1
    found = retriever.judgements("docs")
    assert found["fit"]["num_fitted"] + found["fit"]["num_held_out"] == 102 and not found["is_fitting"]


def test_judgement_replaces_the_earlier_one_and_the_same_again_fits_nothing(judged):
    held = HeldExecutor()
    retriever = judged(held)
    assert retriever.judge("docs", [judgement(1), judgement(2), judgement(1, 3)]) == ["created", "created", "updated"]
    assert held.run() == 1
    assert retriever.judge("docs", [judgement(1, 3), judgement(2)]) == ["unchanged", "unchanged"]
    assert held.run() == 0
    assert retriever.judge("docs", [judgement(2, 0)]) == ["updated"]
    assert held.run() == 1
    assert (retriever.judgements("docs")["judgements"], retriever.judgements("docs")["queries"]) == (2, 1)


def test_fit_that_fails_says_why_and_the_next_change_tries_again(judged, monkeypatch):
    retriever = judged()
    judge_all(retriever, count=99)
    with monkeypatch.context() as broken:
        broken.setattr(StubEncoder, "encode", lambda *_, **__: 1 / 0)
        retriever.judge("docs", [judgement(99)])
    found = retriever.judgements("docs")
    assert "ZeroDivisionError" in found["problem"] and not found["is_fitting"]
    retriever.judge("docs", [judgement(100)])
    found = retriever.judgements("docs")
    assert found["problem"] is None and found["fit"] is not None


def test_more_judgements_than_are_kept_are_refused_as_a_whole(judged, monkeypatch):
    retriever = judged()
    monkeypatch.setattr(stored, "MAX_JUDGEMENTS", 5)
    judge_all(retriever, count=5)
    with pytest.raises(InvalidRequest, match=r"would have 6 judgements; up to 5 are kept"):
        retriever.judge("docs", [judgement(5)])
    assert retriever.judgements("docs")["judgements"] == 5


def test_judgements_of_an_unknown_collection_are_refused(judged):
    retriever = judged()
    for call in (retriever.judgements, retriever.forget_judgements):
        with pytest.raises(UnknownCollection, match="collection 'none' is unknown"):
            call("none")
    with pytest.raises(UnknownCollection):
        retriever.judge("docs", [judgement(1)], tenant="stranger")
