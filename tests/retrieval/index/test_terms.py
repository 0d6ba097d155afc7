"""What of a text can be found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.retrieval.index.terms import Terms, terms_of


def found_by(query: str, text: str) -> bool:
    """Whether text and query share a term."""
    document, asked = terms_of(text), terms_of(query, is_query=True)
    return bool(set(document.stems) & set(asked.stems) or set(document.exact) & set(asked.exact))


def test_words_are_stems_and_changed_words_are_kept_as_written():
    terms = terms_of("Running the caches")
    assert terms.stems == ["run", "the", "cach"]
    assert terms.exact == ["running", "caches"]


@pytest.mark.parametrize(
    ("text", "whole", "parts"),
    [
        ("edit fly.toml now", "fly.toml", ["fli", "toml"]),
        ("set WG_KEY", "wg_key", ["wg", "key"]),
        ("auto_stop = true", "auto_stop", ["auto", "stop"]),
        ("see docs/a-b.", "docs/a-b", ["doc", "a", "b"]),
        ("don't", "don't", ["don", "t"]),
        ("v1.2.3", "v1.2.3", ["v1", "2", "3"]),
    ],
)
def test_identifiers_are_kept_whole_and_by_their_parts(text, whole, parts):
    terms = terms_of(text)
    assert whole in terms.exact
    assert set(parts) <= set(terms.stems)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("数据库", "如何备份数据库？"),
        ("据", "如何备份数据库？"),
        ("データ", "データベースの設定"),
        ("데이터베이스", "데이터베이스를 복구"),
        ("ภาษา", "เอกสารภาษาไทย"),
        ("ÉCOLE", "l'école"),
        ("ecole", "l'e\u0301cole"),
        ("हिन्दी", "यह हिन्दी है"),
        ("ПРИВЕТ", "привет, мир"),
        ("Straße", "STRASSE"),
        ("K8S", "k8s"),
        ("file", "ﬁle"),
    ],
)
def test_other_scripts_and_spellings_are_found(query, text):
    assert found_by(query, text)


@pytest.mark.parametrize(("query", "text"), [("数学", "数据"), ("machine", "mashine"), ("fly.io", "toml")])
def test_texts_that_share_no_term_are_not_found(query, text):
    assert not found_by(query, text)


def test_query_leaves_single_characters_out_where_a_pair_says_more():
    assert terms_of("数据", is_query=True).stems == ["数据"]
    assert terms_of("数据").stems == ["数", "据", "数据"]


@pytest.mark.parametrize("text", ["", " \n", "\x00", "?!.", "' -- '", "\ud800", "_"])
def test_texts_without_words_have_no_terms(text):
    assert terms_of(text) == Terms([], [])


def test_half_a_surrogate_pair_separates_words():
    assert terms_of("one\ud800two").stems == ["one", "two"]


def test_long_words_are_cut_alike_on_both_sides():
    terms = terms_of("x" * 1_000_000 + " " + "a_" * 500_000 + "b")
    assert max(map(len, terms.stems + terms.exact)) == 64
    assert found_by("x" * 70, "x" * 1_000_000)


@given(st.text(st.characters(codec=None), max_size=60), st.booleans())
def test_any_string_gives_terms_without_blanks(text, is_query):
    terms = terms_of(text, is_query=is_query)
    for term in terms.stems + terms.exact:
        assert term and len(term) <= 64 and not any(map(str.isspace, term))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_a_text_with_terms_is_found_by_itself(text):
    assert found_by(text, text) == bool(terms_of(text).stems)
