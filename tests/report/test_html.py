"""Texts are escaped wherever they stand, and what no document may hold is replaced."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from engine.report.html import Html, escape, figure, join, named, quoted, table, tag


class Reader(HTMLParser):
    """The elements, their attributes and the text of a document."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


# Parsers may turn these into others.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="\r\ufffd"), min_size=1)


@given(TEXT)
def test_any_text_comes_back_as_text_and_as_attribute(text):
    found = read(tag("p", text, title=text))
    assert found.text == text
    assert found.elements == [("p", {"title": text})]


def test_markup_made_here_is_kept_and_other_strings_are_not():
    assert join(Html("<b>"), "<b>", 3, None, ["&", [Html("</b>")]]) == "<b>&lt;b&gt;3&amp;</b>"


def test_attributes_that_are_none_are_left_out():
    assert tag("td", "x", class_=None, hidden=True, colspan=2, scope=False) == '<td hidden colspan="2">x</td>'


def test_control_characters_and_surrogates_are_replaced():
    assert escape("a\x00\x1b\ud800\ufffe\n\tb") == "a\ufffd\ufffd\ufffd\ufffd\n\tb"


def test_long_and_empty_texts_are_shown_as_such():
    assert quoted("x" * 700).count("x") == 599
    assert read(quoted(" \n")).text == "nothing"


def test_wide_picture_scrolls_around_what_is_described():
    names = [
        attributes.get("role") for _, attributes in read(figure(Html("<svg></svg>"), "a", scrolls_as="b")).elements
    ]
    assert names == [None, "region", "img", None]


def test_label_may_break_after_an_underscore_without_changing_its_text():
    found = read(named("<a>_b"))
    assert found.text == "<a>_b"
    assert [name for name, _ in found.elements] == ["bdi", "wbr"]


def test_table_is_headed_by_row_and_column_and_can_be_scrolled_by_keyboard():
    found = read(table("What <it> is", ("", "one"), [("<r>", "1")])).elements
    assert [attributes["scope"] for name, attributes in found if name == "th"] == ["col", "col", "row"]
    assert found[0] == ("div", {"class": "scroll", "role": "region", "aria-label": "What <it> is", "tabindex": "0"})
