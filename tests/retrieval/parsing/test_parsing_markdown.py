"""Front matter, ERB tags and HTML wrappers of Markdown pages."""

from __future__ import annotations

import pytest

from engine.retrieval.parsing.markdown import parse_markdown


def text_of(raw: str) -> str:
    return parse_markdown(raw)[0]


def test_front_matter_is_removed_and_gives_the_title():
    assert parse_markdown("---\ntitle: Fly: not quoted\n---\nx")[1] is None
    assert parse_markdown('---\nlayout: docs\ntitle: "A: b"\n---\n\ntext\n') == ("\ntext\n", "A: b")


@pytest.mark.parametrize(
    "raw",
    [
        "---\ntitle: [\n---\ntext",
        "---\n- a\n- list\n---\ntext",
        "---\nnever closed\n\ntext",
        "---\n" + "[" * 10_000 + "\n---\ntext",
        "---\n? {a: b}\n: c\n---\ntext",
        "---\n\n---\ntext",
        "---",
    ],
)
def test_malformed_front_matter_stays_as_text(raw):
    assert parse_markdown(raw)[1] is None
    assert parse_markdown(raw)[0].startswith("---")


@pytest.mark.parametrize("title", ["2021-99-99", "!!timestamp x", "!!python/object:os.system x", "yes", "1"])
def test_front_matter_values_are_plain_strings_whatever_they_look_like(title):
    assert parse_markdown(f"---\ntitle: {title}\n---\nx") == ("x", title.rpartition(" ")[2])


def test_title_that_is_no_string_is_none():
    assert parse_markdown("---\ntitle: [a, b]\n---\nx") == ("x", None)


def test_erb_tags_are_dropped_over_several_lines():
    assert text_of('a <%= partial "x" %> b\n<% items.each do |i|\n  puts i\nend %>c') == "a  b\nc"


def test_erb_arguments_that_readers_see_are_kept():
    erb = "<%= render Item.new(\n  id: 'x',\n  title: \"Set up SSO\",\n  description: 'It\\'s free'\n) %>"
    assert text_of(erb).split() == "Set up SSO It's free".split()


def test_code_keeps_erb_tags_html_and_entities():
    code = "```erb\n<div><%= title %></div> &amp;\n```\n"
    assert text_of(code) == code
    assert text_of("write `<div>&lt;<%= x %>` here") == "write `<div>&lt;<%= x %>` here"


def test_code_span_does_not_reach_over_a_blank_line():
    assert text_of("a ` b <b>c</b>\n\nd ` e") == "a ` b c\n\nd ` e"


def test_html_wrappers_go_and_their_text_stays():
    page = '<div class="note icon">\n**Note**: see <a href="/x">the guide</a>.<br>Done\n</div>'
    assert text_of(page).strip() == "**Note**: see the guide.\nDone"


def test_placeholders_in_angle_brackets_are_text():
    assert text_of("run fly -a <app-name> <volume id> <b-x> <none>") == "run fly -a <app-name> <volume id> <b-x> <none>"


def test_html_headings_and_lists_become_markdown():
    assert text_of("<h2 id='x'>Title</h2><ul><li>one</li><li>two</li></ul>").split("\n") == [
        *("", "", "## Title", "", "- one", "- two", "")
    ]


def test_scripts_styles_and_comments_are_dropped_with_their_content():
    assert text_of("a<!-- x\n<b> -->b<script src='x'>let c = '<p>'</script>c<STYLE>d</Style >d") == "abcd"


def test_entities_are_resolved_and_give_no_lone_surrogate():
    assert text_of("a &mdash; &lt;app&gt; &#xD800; &nosuch; a&b") == "a — <app> \ufffd &nosuch; a&b"


@pytest.mark.parametrize(
    "piece", ["<%", "<!--", "<script>", "<div ", '<div "', "`", "``` `", "&amp", "<p '\"", "<% title: '", "~~~\n"]
)
def test_unclosed_openings_by_the_thousand_are_kept_and_take_no_time(piece):
    raw = piece * 60_000
    assert len(text_of(raw)) > 0
