"""The lexical index against a dict of what it should hold."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval.index.lexical import LexicalChunk, LexicalIndex

WORDS = ["apple", "river", "stone", "cloud", "bread", "glass"]
chunks_of_words = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), min_size=1, max_size=40)


def chunk(
    key: int, text: str, *, document: int = 0, tenant: str = "", title: str = "", heading: str = ""
) -> LexicalChunk:
    return LexicalChunk(key, document, tenant, title, heading, text)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LexicalIndex]:
    index = LexicalIndex(tmp_path / "lexical")
    assert index.open() is None
    yield index
    index.close()


def keys_of(index: LexicalIndex, query: str, k: int = 100, **scope) -> list[int]:
    return [key for key, _ in index.search([query], k, **({"tenant": ""} | scope))[0]]


def test_scores_are_those_of_bm25(index):
    texts = ["bread river", "bread bread stone", "cloud", "river stone cloud bread moon"]
    index.rebuild([chunk(key, text) for key, text in enumerate(texts)], 1)
    average = sum(len(text.split()) for text in texts) / len(texts)

    def bm25(word: str, text: str) -> float:
        num_with = sum(word in text.split() for text in texts)
        idf = math.log(1 + (len(texts) - num_with + 0.5) / (num_with + 0.5))
        tf, length = text.split().count(word), len(text.split())
        return idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / average))

    for query in ("bread", "river", "bread stone", "bread bread river"):
        expected = {key: sum(bm25(word, text) for word in query.split()) for key, text in enumerate(texts)}
        hits = index.search([query], 10, tenant="")[0]
        assert dict(hits) == pytest.approx({key: score for key, score in expected.items() if score > 0}, abs=1e-3)
        assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)


def test_each_query_gets_its_own_answer(index):
    index.rebuild([chunk(1, "apple"), chunk(2, "river")], 1)
    first, second, third = index.search(["apple", "river", "cloud"], 5, tenant="")
    assert ([key for key, _ in first], [key for key, _ in second], third) == ([1], [2], [])
    assert index.search([], 5, tenant="") == []


def test_title_and_heading_are_searched_too(index):
    index.rebuild([chunk(1, "bread", title="Apple"), chunk(2, "bread", heading="River > Stone"), chunk(3, "cloud")], 1)
    assert keys_of(index, "apple") == [1]
    assert keys_of(index, "stones") == [2]


def test_a_word_in_the_title_weighs_more_than_in_the_text(index):
    index.rebuild([chunk(1, "apple bread"), chunk(2, "river bread", title="apple"), chunk(3, "stone")], 1)
    assert keys_of(index, "apple") == [2, 1]


def test_identifiers_are_found_whole_first_and_by_their_parts(index):
    index.rebuild([chunk(1, "a fly in the toml"), chunk(2, "edit fly.toml in it"), chunk(3, "WG_KEY and auto_stop")], 1)
    assert keys_of(index, "fly.toml") == [2, 1]
    assert keys_of(index, "toml") == [1, 2]
    assert keys_of(index, "wg_key") == keys_of(index, "key") == keys_of(index, "AUTO_STOP") == [3]


@pytest.mark.parametrize(
    "query",
    ['"apple river"', "apple AND river", "text:apple", "+apple -river", "apple*", "(apple", "apple~2", "[apple"],
)
def test_query_syntax_is_plain_text(index, query):
    index.rebuild([chunk(1, "river bread apple"), chunk(2, "apple"), chunk(3, "river"), chunk(4, "apples")], 1)
    assert set(keys_of(index, query)) >= {1, 2, 4}


@pytest.mark.parametrize("query", ["", "  ", "*", ":", "\x00", "\ud800", '"" - ()'])
def test_query_without_terms_finds_nothing(index, query):
    index.rebuild([chunk(1, "apple and")], 1)
    assert index.search([query], 5, tenant="") == [[]]


def test_any_number_of_results_may_be_asked_for(index):
    index.rebuild([chunk(key, "apple") for key in range(5)], 1)
    assert keys_of(index, "apple", 0) == []
    assert keys_of(index, "apple", 3) == [0, 1, 2]
    assert keys_of(index, "apple", 10**15) == [0, 1, 2, 3, 4]


def test_ties_are_broken_by_key_even_across_the_cut_and_across_files(index):
    index.rebuild([chunk(key, "apple river") for key in range(50, 25, -1)], 1)
    index.apply([], [chunk(key, "apple river") for key in range(25, 0, -1)], 2)
    assert keys_of(index, "river apple", 7) == [1, 2, 3, 4, 5, 6, 7]


def test_texts_of_any_content_and_size_are_indexed(index):
    texts = ["nul\x00byte", "half \ud800 pair", "x" * 1_000_000, "word " * 2_000_000 + "needle", "", "数据库"]
    index.rebuild([chunk(key, text, title=text[:10], heading=text[:10]) for key, text in enumerate(texts)], 1)
    for key, query in enumerate(["byte", "half", "x" * 1_000_000, "needle"]):
        assert keys_of(index, query) == [key]
    assert keys_of(index, "数据") == [5]
    assert keys_of(index, "needle " + " ".join(map(str, range(10_000)))) == [3]


def test_nothing_is_found_before_the_first_rebuild(index):
    assert index.search(["apple"], 5, tenant="") == [[]]


steps = st.lists(
    st.tuples(
        st.sets(st.integers(0, 30), max_size=6),
        st.dictionaries(st.integers(0, 30), st.tuples(st.sampled_from("ab"), st.sampled_from(WORDS)), max_size=6),
        st.sampled_from(["apply", "apply", "apply", "rebuild", "reopen"]),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(steps)
def test_index_equals_a_dict_after_any_history(history):
    folder = Path(tempfile.mkdtemp())
    index, expected = LexicalIndex(folder / "lexical"), {}
    index.rebuild([], 0)
    try:
        for version, (removed, added, step) in enumerate(history, start=1):
            chunks = [chunk(key, f"{word} {key}", document=key, tenant=tenant) for key, (tenant, word) in added.items()]
            if step == "rebuild":
                expected = dict(added)
                index.rebuild(chunks, version)
            else:
                # What is added under a key that is there replaces it.
                gone = removed | (added.keys() & expected.keys())
                expected = {key: value for key, value in expected.items() if key not in gone} | added
                index.apply(sorted(gone), chunks, version)
            if step == "reopen":
                index.close()
                assert index.open() == version
            for tenant in "ab":
                for word in WORDS:
                    mine = sorted(key for key, value in expected.items() if value == (tenant, word))
                    assert sorted(keys_of(index, word, tenant=tenant)) == mine
            for word in WORDS:
                everybodys = sorted(key for key, value in expected.items() if value[1] == word)
                assert sorted(keys_of(index, word, tenant=None)) == everybodys
    finally:
        index.close()
        shutil.rmtree(folder)


@settings(max_examples=25, deadline=None)
@given(chunks_of_words, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.integers(1, 50), st.data())
def test_filtered_search_is_the_unfiltered_one_restricted_to_what_is_allowed(texts, words, k, data):
    index = LexicalIndex(Path(tempfile.mkdtemp()) / "lexical")
    try:
        chunks = [chunk(i, " ".join(text), document=i % 7, tenant="ab"[i % 2]) for i, text in enumerate(texts)]
        index.rebuild(chunks[::2], 1)
        index.apply([], chunks[1::2], 2)
        allowed = data.draw(st.sets(st.integers(0, 8)))
        query = " ".join(words)
        for tenant in "ab":
            everything = index.search([query], 1000, tenant=tenant)[0]
            assert all(chunks[key].tenant == tenant for key, _ in everything)
            expected = [(key, score) for key, score in everything if key % 7 in allowed]
            documents = np.array(sorted(allowed), np.int64)
            others = np.array(sorted(set(range(9)) - allowed), np.int64)
            for scope in ({"documents": documents}, {"excluded": others}, {"documents": documents, "excluded": others}):
                found = index.search([query], k, tenant=tenant, **scope)[0]
                # A sum of float32 in another order may be rounded the other way, which swaps equals.
                assert len({key for key, _ in found}) == len(found)
                for key, score in found:
                    assert dict(expected)[key] == pytest.approx(score, abs=2e-4)
                assert [score for _, score in found] == pytest.approx([score for _, score in expected[:k]], abs=2e-4)
    finally:
        index.close()
        shutil.rmtree(index._folder.parent)


def test_tenants_never_meet(index):
    names = ["", "a", "A", "a b", "=", "=a", "tenant:a", "*"]
    index.rebuild([chunk(key, "apple", document=1, tenant=name) for key, name in enumerate(names)], 1)
    for key, name in enumerate(names):
        assert keys_of(index, "apple", tenant=name) == [key]
        assert keys_of(index, "apple", tenant=name, documents=np.array([1])) == [key]
    assert keys_of(index, "apple tenant a", tenant="b") == []


def test_many_documents_may_be_allowed_or_excluded(index):
    index.rebuild([chunk(key, "apple", document=key) for key in range(300)], 1)
    many = np.arange(250, 20_000, dtype=np.int64)
    assert keys_of(index, "apple", 1000, documents=many) == list(range(250, 300))
    assert keys_of(index, "apple", 1000, excluded=many) == list(range(250))
    assert keys_of(index, "apple", 1000, documents=np.array([], np.int64)) == []
    assert len(keys_of(index, "apple", 1000, excluded=np.array([], np.int64))) == 300


def test_chunks_replaced_many_times_are_found_once_with_their_last_text(index):
    rng = random.Random(0)
    index.rebuild([chunk(key, "old") for key in range(20)], 0)
    for version in range(1, 40):
        keys = rng.sample(range(20), 5)
        index.apply(keys, [chunk(key, f"apple v{version}") for key in keys], version)
        assert sorted(keys_of(index, f"v{version}")) == sorted(keys)
    assert sorted(keys_of(index, "apple old")) == list(range(20))


@settings(max_examples=25, deadline=None)
@given(chunks_of_words, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.integers(1, 20))
def test_index_of_one_tenant_gives_the_same_hits_without_asking_for_it(chunks, words, k):
    folder = Path(tempfile.mkdtemp())
    index = LexicalIndex(folder / "lexical")
    try:
        index.rebuild([chunk(key, " ".join(text), tenant="a") for key, text in enumerate(chunks)], 1)
        assert index.search([" ".join(words)], k, tenant=None) == index.search([" ".join(words)], k, tenant="a")
    finally:
        index.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("num_queries", [0, 1, 2, 7, 40])
def test_several_threads_answer_each_query_as_one_does(tmp_path: Path, threads: int, num_queries: int):
    texts = [" ".join(WORDS[(i * step) % len(WORDS)] for step in range(1, 6)) for i in range(60)]
    queries = [*texts, "", "nowhere"][-num_queries:] if num_queries else []
    answers = []
    for used in (1, threads):
        index = LexicalIndex(tmp_path / str(used), threads=used)
        index.open()
        index.rebuild((chunk(key, text) for key, text in enumerate(texts)), 1)
        answers.append(index.search(queries, 5, tenant=""))
        # Closed and opened again, it searches on.
        index.close()
        assert index.open() == 1
        assert index.search(queries, 5, tenant="") == answers[-1]
        index.close()
    assert answers[0] == answers[1] and len(answers[0]) == num_queries


def test_a_failing_search_of_another_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index = LexicalIndex(tmp_path / "lexical", threads=2)
    index.open()
    index.rebuild([chunk(1, WORDS[0])], 1)
    hits = index._hits

    def fail_for_the_second(searcher, match, scope, k):
        if match is None:
            raise ValueError("the file is gone")
        return hits(searcher, match, scope, k)

    monkeypatch.setattr(index, "_hits", fail_for_the_second)
    with pytest.raises(ValueError, match="the file is gone"):
        index.search([WORDS[0], ""], 5, tenant="")
    index.close()
