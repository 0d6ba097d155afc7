"""What a learned router reads of a search: that it is right, nobody else's, and free where nobody asks."""

from __future__ import annotations

import numpy as np
import pytest
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import InvalidRequest
from engine.metrics.likeness import mean_cosine
from engine.retrieval.service import Retriever
from engine.retrieval.store.passage_reader import PassageReader
from engine.values import Clues, DocumentWrite, Evidence, Query

PAGES = {"a": "red apples and pears", "b": "red wine", "c": "green pears", "d": "a wooden table", "e": "an iron chair"}


def fill(retriever: Retriever, pages: dict[str, str] = PAGES, **fields) -> None:
    writes = [
        DocumentWrite(name, text.encode(), metadata={"shelf": name}, content_type="text/plain")
        for name, text in pages.items()
    ]
    assert all(one.error is None for one in retriever.write("docs", writes, **fields))


def ask(retriever: Retriever, text: str, k: int = 2, **fields) -> Evidence:
    (found,) = retriever.evidence([Query(text, "docs", k, wants_clues=True, **fields)])
    assert isinstance(found, Evidence), found
    return found


def clues(retriever: Retriever, text: str, **fields) -> Clues:
    found = ask(retriever, text, **fields).clues
    assert found is not None
    return found


def test_clues_hold_the_embedding_the_agreement_of_the_legs_and_the_coherence_of_the_best_chunks(retriever, encoder):
    fill(retriever)
    found = ask(retriever, "red pears")
    assert found.clues is not None
    np.testing.assert_array_equal(found.clues.embedding, encoder.encode(["red pears"], is_query=True)[0])
    # By words a, b and c are found; by meaning all five.
    assert found.clues.agreement == 1.0
    # A chunk is embedded with its title, which is that of the file.
    assert found.clues.coherence is not None and -1 <= found.clues.coherence <= 1
    assert len(found.passages) == 2 and len(found.similarities) == 5


def test_coherence_is_that_of_the_stored_vectors(retriever, encoder, monkeypatch):
    fill(retriever)
    kept: list[np.ndarray] = []
    real = PassageReader.vectors
    monkeypatch.setattr(PassageReader, "vectors", lambda *given: kept.extend((found := real(*given)).values()) or found)
    found = clues(retriever, "red pears")
    assert found.coherence == pytest.approx(mean_cosine(np.stack(kept)), abs=1e-6)
    assert len(kept) == 5


def test_words_are_counted_by_their_stems_in_the_order_of_the_question(retriever):
    fill(retriever)
    found = clues(retriever, "x", words=("pear", "red", "nowhere", "!"))
    assert (found.num_texts, found.texts_with) == (5, (2, 2, 0, 0))


def test_counts_are_of_the_tenants_own_texts(open_retriever):
    retriever = open_retriever()
    fill(retriever, tenant="one")
    fill(retriever, {"s": "red secret merger"}, tenant="two")
    found = clues(retriever, "x", words=("red", "merger"), tenant="one")
    assert (found.num_texts, found.texts_with) == (5, (2, 0))
    found = clues(retriever, "x", words=("red", "merger"), tenant="two")
    assert (found.num_texts, found.texts_with) == (1, (1, 1))


@pytest.mark.parametrize("operator", ["$in", "$nin"])
def test_counts_are_of_what_the_filter_lets_through(retriever, operator):
    fill(retriever)
    shelves = ["b", "c", "d"] if operator == "$in" else ["a", "e"]
    found = clues(retriever, "x", words=("red", "apples", "pears"), filter={"shelf": {operator: shelves}})
    assert (found.num_texts, found.texts_with) == (3, (1, 0, 1))
    nothing = clues(retriever, "x", words=("red",), filter={"shelf": "z"})
    assert (nothing.num_texts, nothing.texts_with) == (0, (0,))


def test_queries_of_one_batch_have_the_clues_that_each_has_alone(retriever):
    fill(retriever)
    asked = [
        Query("red pears", "docs", 1, wants_clues=True, words=("red", "pears")),
        Query("green pears", "docs", 4),
        Query("iron chair", "docs", 1, wants_clues=True, words=("iron",), filter={"shelf": {"$ne": "a"}}),
        Query("wine", "docs", 1, wants_clues=True, mode="lexical", wants_similarities=False, words=("wine",)),
    ]
    together = retriever.evidence(asked)
    assert isinstance(together[1], Evidence) and together[1].clues is None
    for query, one in zip(asked, together, strict=True):
        (alone,) = retriever.evidence([query])
        assert isinstance(one, Evidence) and isinstance(alone, Evidence)
        assert one.similarities == pytest.approx(alone.similarities) and one.passages == alone.passages
        if query.wants_clues:
            assert one.clues is not None and alone.clues is not None
            np.testing.assert_array_equal(one.clues.embedding, alone.clues.embedding)
            assert one.clues.agreement == alone.clues.agreement
            assert one.clues.coherence == pytest.approx(alone.clues.coherence)
            assert one.clues.texts_with == alone.clues.texts_with


def test_a_search_by_meaning_alone_has_no_agreement(retriever):
    fill(retriever)
    found = clues(retriever, "red pears", mode="dense")
    assert found.agreement is None and found.coherence is not None


def test_a_search_that_wants_no_clues_reads_no_vector_and_counts_no_word(retriever, monkeypatch):
    fill(retriever)
    refused = pytest.fail
    monkeypatch.setattr(PassageReader, "vectors", lambda *_: refused("vectors were read"))
    (found,) = retriever.evidence([Query("red pears", "docs", 2, words=("red",))])
    assert isinstance(found, Evidence)
    assert found.clues is None and len(found.similarities) == 2


def test_a_tenant_without_documents_learns_the_embedding_alone(retriever):
    fill(retriever, tenant="one")
    found = ask(retriever, "red", words=("red",))
    assert found.clues is not None
    assert (found.passages, found.clues.agreement, found.clues.num_texts, found.clues.texts_with) == ((), None, 0, ())


def test_texts_are_embedded_as_questions_without_a_search(retriever, encoder):
    np.testing.assert_array_equal(retriever.embed(["a b", "c"]), encoder.encode(["a b", "c"], is_query=True))
    assert retriever.embed([]).shape == (0, encoder.dim)
    with pytest.raises(InvalidRequest, match="surrogate"):
        retriever.embed(["\ud800"])


def test_index_info_changes_with_the_encoder_and_the_chunking_alone(tmp_path):
    def info(name: str, **settings):
        folder = tmp_path / f"{name}{len(settings)}"
        retriever = Retriever(folder, StubEncoder(name), SETTINGS.model_copy(update=settings))
        found = retriever.index_info()
        retriever.close()
        return found

    first, other, cut = info("words"), info("others"), info("words", chunk_tokens=20)
    assert first.chunking == other.chunking != cut.chunking
    assert first.encoder == cut.encoder != other.encoder
