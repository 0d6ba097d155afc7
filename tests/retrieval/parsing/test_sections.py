"""Where sections begin."""

from __future__ import annotations

from engine.retrieval.parsing.sections import find_sections, split_fences


def paths(text: str) -> list[tuple[str, ...]]:
    return [section.path for section in find_sections(text)]


def test_path_leads_down_to_each_heading():
    text = "# A\n\n## B\n\n#### C\n\n## D\n\n# E\n"
    assert paths(text) == [("A",), ("A", "B"), ("A", "B", "C"), ("A", "D"), ("E",)]


def test_start_of_a_section_is_its_headings_first_character():
    text = "ä日😀\n\n## Straße\n\ntext\n\nTitle\n=====\n"
    assert [text[section.start :].split("\n")[0] for section in find_sections(text)] == ["## Straße", "Title"]


def test_hash_line_inside_a_fence_is_no_heading():
    assert paths("# A\n```sh\n# comment\n```\n  ~~~~\n# x\n```\n~~~\n~~~~\n## B\n") == [("A",), ("A", "B")]


def test_fence_that_is_never_closed_runs_to_the_end():
    assert paths("# A\n```\n# x\n") == [("A",)]


def test_inline_code_at_a_lines_start_opens_no_fence():
    assert paths("```code``` text\n# A\n") == [("A",)]


def test_underlined_headings_count_and_rules_do_not():
    assert paths("A\n===\n\nB\n---\n\ntext\n\n---\n\n- item\n---\n| a |\n---\n# C\n---\n") == [
        ("A",),
        ("A", "B"),
        ("C",),
    ]


def test_heading_is_shown_without_marks():
    assert paths("## Use [`fly`](/docs) **now** ##\n#\n#tag\n") == [("Use fly now",)]


def test_long_heading_is_cut():
    assert len(paths("# " + "x" * 100_000)[0][0]) == 200


def test_fences_cover_the_whole_text_in_order():
    text = "a\n```\nb\n```\n> ~~~\n> c\n> ~~~\nd"
    runs = list(split_fences(text))
    assert "".join(text[start:end] for start, end, _ in runs) == text
    assert [is_code for *_, is_code in runs] == [False, True, True, False]
