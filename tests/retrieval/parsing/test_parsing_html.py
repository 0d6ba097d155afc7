"""HTML pages rendered to Markdown-like text."""

from __future__ import annotations

import pytest

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.formats import parse_document
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.process import ParserPool

PAGE = """<!doctype html><html><head><title>Volumes &amp; disks</title><style>p {}</style></head><body>
<nav>Home | Docs</nav>
<header><h1>Volumes</h1></header>
<p>A volume is   a <b>slice</b>
of a disk.<br>Next line.</p>
<h2>Create <code>one</code></h2><ul><li>first</li><li><p>second</p></li></ul>
<pre>
# not a heading
fly volumes create &lt;name&gt;
</pre>
<table><tr><th>size</th><th>price</th></tr><tr><td>1 GB</td><td>$0.15</td></tr></table>
<script>alert("x")</script><footer>Imprint</footer></body></html>"""


def parsed(html: str):
    return parse_document(html.encode(), "text/html", title=None)


def test_page_becomes_text_with_headings_lists_code_and_tables():
    assert parsed(PAGE).text == (
        "# Volumes\n\nA volume is a slice of a disk.\nNext line.\n\n## Create one\n\n- first\n- second\n\n"
        "```\n# not a heading\nfly volumes create <name>\n```\n\nsize | price\n1 GB | $0.15"
    )


def test_title_comes_from_the_head_and_sections_from_the_headings():
    page = parsed(PAGE)
    assert page.title == "Volumes & disks"
    assert [section.path for section in page.sections] == [("Volumes",), ("Volumes", "Create one")]


def test_main_is_taken_where_a_page_has_one():
    assert parsed("<div>menu</div><main><p>text</p></main><div>more</div>").text == "text"


def test_paragraph_that_begins_with_a_hash_is_no_heading():
    assert parsed("<p># 1 in sales</p>").sections == ()


def test_code_that_holds_a_fence_is_fenced_longer():
    assert parsed("<pre>```\ncode\n```</pre>").text == "````\n```\ncode\n```\n````"


@pytest.mark.parametrize(
    "html", ["<p>a<p>b<div><b>c", "a</div></p>b c", "<ul><li>a<li>b<td>c", "<p>a<!-- b c", "<>a b c"]
)
def test_unclosed_and_stray_tags_keep_their_text(html):
    assert "a" in parsed(html).text


def test_many_unclosed_paragraphs_and_items_are_fine():
    assert parsed("<p>x" * 20_000 + "<li>y" * 20_000).text.count("x") == 20_000


@pytest.mark.parametrize("tag", ["div", "blockquote", "font", "ul><li"])
def test_tags_nested_without_end_are_refused_instead_of_taking_minutes(tag):
    with pytest.raises(UnparsableDocument, match=r"nested 513 deep at character \d+ .*allowed: 512"):
        parsed(f"<{tag}>" * 200_000)


def test_open_formatting_that_would_be_copied_into_every_block_is_refused():
    with pytest.raises(UnparsableDocument, match="formatting tags stay open"):
        parsed("".join(f"<p><b x={i}></p>" for i in range(400)) + "<p>a</p>" * 20_000)


def test_deep_but_allowed_nesting_does_not_recurse():
    assert parsed("<div>" * 500 + "core" + "</div>" * 500).text == "core"


@pytest.mark.parametrize("round_trip", ["<div></span>", "<ul></b></p>", "<section></x-y>"])
def test_end_tags_of_what_is_not_open_do_not_hide_depth(round_trip):
    with pytest.raises(UnparsableDocument, match="nested 513 deep"):
        parsed(round_trip * 100_000)


def test_page_whose_tree_needs_more_memory_than_allowed_is_refused():
    pool = ParserPool(limits=ParsingLimits(max_memory_bytes=96 * 2**20))
    try:
        with pytest.raises(UnparsableDocument, match="needs more than 96 MiB of memory"):
            pool.parse("html", b"<p>x" * 500_000)
    finally:
        pool.close()


def test_unclosed_tags_inside_of_closed_ones_are_no_depth_of_their_own_kind():
    assert parsed("<div><span>x</div></span>" * 2_000).text.count("x") == 2_000


def test_one_line_of_ten_megabytes_is_read():
    words = "word " * 2_000_000 + "end"
    assert parsed(f"<p>{words}</p>").text == words


@pytest.mark.parametrize(
    "html",
    [
        "<p " + " ".join(f"a{i}=1" for i in range(400_000)) + ">text",
        "<select>" + "<option>y" * 400_000,
        "<span><div></span></div>" * 200_000,
        "".join(f"<p a{i}=1 b='2' c=3>x</p>" for i in range(150_000)),
        "<!--" * 1_000_000,
        '<p a="' + "<p>" * 1_000_000,
        "&amp;" * 1_000_000,
        "<" * 2_000_000,
    ],
    ids=["attributes", "options", "crossed", "many tags", "comments", "quote", "entities", "brackets"],
)
def test_markup_without_sense_is_read_or_refused_within_its_limits(html):
    pool = ParserPool(limits=ParsingLimits(timeout_s=3))
    try:
        assert pool.parse("html", html.encode()).is_markdown
    except UnparsableDocument as error:
        assert "took longer than 3 s" in str(error) or "nested 513 deep" in str(error)
    finally:
        pool.close()
