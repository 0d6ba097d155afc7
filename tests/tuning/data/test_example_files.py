"""Files of examples: kinds, formats, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import TrainingDataError
from engine.tuning.data.examples import MAX_REPORTED, read_examples
from engine.tuning.data.limits import DataLimits
from engine.tuning.data.rows import ChatRow, CompletionRow, LabelRow, QuestionRow
from engine.values import Message

LABELLED = [
    {"text": "My card is lost", "label": "lost_card"},
    {"text": "Where is my transfer?", "label": "transfer"},
]


def jsonl(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def refusal(file: Path, **options: Any) -> TrainingDataError:
    with pytest.raises(TrainingDataError) as caught:
        read_examples(file, **options)
    return caught.value


def test_texts_and_labels_become_label_rows_of_the_task_classify(tmp_path):
    examples = read_examples(jsonl(tmp_path, *LABELLED))
    assert (examples.kind, examples.task, examples.file_format) == ("label", "classify", "JSONL")
    assert examples.labels == ("lost_card", "transfer")
    assert examples.rows[1] == LabelRow(line=2, text="Where is my transfer?", label="transfer")


def test_prompts_and_completions_become_completion_rows_of_the_task_chat(tmp_path):
    examples = read_examples(jsonl(tmp_path, {"prompt": "Hello", "completion": " Good day"}))
    assert examples.task == "chat"
    assert examples.rows == (CompletionRow(1, "Hello", " Good day"),)


def test_messages_become_chat_rows_whose_target_is_the_last_turn(tmp_path):
    turns = [("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Farewell")]
    examples = read_examples(jsonl(tmp_path, {"messages": [{"role": r, "content": c} for r, c in turns]}))
    (row,) = examples.rows
    assert isinstance(row, ChatRow)
    assert row.messages == tuple(Message(role, content) for role, content in turns)
    assert (row.input_text, row.target) == ("Hi\nHello\nBye", "Farewell")


def test_questions_keep_every_answer_and_their_context_or_document(tmp_path):
    rows = [
        {"question": "Who?", "answers": ["Ada", "Lovelace"], "context": "Ada Lovelace wrote it."},
        {"question": "When?", "answers": ["1843"], "document": "notes/ada.md"},
        {"question": "Why?", "answers": [], "context": "Nobody knows.", "unanswerable": True},
    ]
    examples = read_examples(jsonl(tmp_path, *rows))
    assert examples.task == "qa"
    assert examples.rows == (
        QuestionRow(1, "Who?", ("Ada", "Lovelace"), context="Ada Lovelace wrote it."),
        QuestionRow(2, "When?", ("1843",), document="notes/ada.md"),
        QuestionRow(3, "Why?", (), context="Nobody knows."),
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_by_the_delimiter_that_its_header_has(tmp_path, delimiter):
    file = tmp_path / "data.csv"
    file.write_text(f'text{delimiter}label\n"one{delimiter} two"{delimiter}a\n\nthree{delimiter}b\n', encoding="utf-8")
    examples = read_examples(file)
    assert examples.file_format == "CSV"
    assert examples.rows == (LabelRow(2, f"one{delimiter} two", "a"), LabelRow(4, "three", "b"))


def test_csv_row_that_spans_lines_bears_the_line_in_which_it_begins(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text('text,label\n"one\ntwo",a\nthree,b\n', encoding="utf-8")
    assert [row.line for row in read_examples(file).rows] == [2, 4]


def test_csv_holds_answers_as_a_text_or_a_list_and_empty_cells_are_absent(tmp_path):
    file = tmp_path / "data.csv"
    rows = ["Who?,Ada,,", 'When?,"[""1843"", ""in 1843""]",In 1843.,false', "Why?,,None.,true"]
    file.write_text("\n".join(["question,answers,context,unanswerable", *rows]), encoding="utf-8")
    assert read_examples(file).rows == (
        QuestionRow(2, "Who?", ("Ada",)),
        QuestionRow(3, "When?", ("1843", "in 1843"), context="In 1843."),
        QuestionRow(4, "Why?", (), context="None."),
    )


def test_csv_cell_that_is_no_json_list_is_a_bad_row(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text('messages\n"[{""role"": }]"\n', encoding="utf-8")
    assert "'messages' is no JSON" in str(refusal(file))


def test_gzip_is_found_by_its_content_and_provenance_is_kept_but_no_row(tmp_path):
    file = tmp_path / "data"
    lines = [{"_provenance": {"licence": "CC BY 4.0"}}, *LABELLED]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    examples = read_examples(file)
    assert examples.is_compressed
    assert examples.provenance == {"licence": "CC BY 4.0"}
    assert [row.line for row in examples.rows] == [2, 3]
    assert examples.description == "JSONL (gzip), rows of text and label"


def test_digest_is_that_of_the_rows_and_not_of_the_file(tmp_path):
    plain = read_examples(jsonl(tmp_path, *LABELLED))
    csv = tmp_path / "same.csv"
    csv.write_text("label,id,text\n" + "".join(f"{row['label']},7,{row['text']}\n" for row in LABELLED))
    as_csv = read_examples(csv)
    other = read_examples(jsonl(tmp_path, *LABELLED, {"text": "More", "label": "transfer"}, name="other.jsonl"))
    turned = read_examples(jsonl(tmp_path, *reversed(LABELLED), name="turned.jsonl"))
    assert plain.digest == as_csv.digest
    assert as_csv.ignored_fields == ("id",)
    assert len({plain.digest, other.digest, turned.digest}) == 3


def test_number_is_a_label_and_spaces_around_a_label_are_none_of_it(tmp_path):
    examples = read_examples(jsonl(tmp_path, {"text": "a", "label": 1}, {"text": "b", "label": " two "}))
    assert examples.labels == ("1", "two")


def test_group_of_a_row_is_kept_and_part_of_the_digest(tmp_path):
    grouped = read_examples(jsonl(tmp_path, *({**row, "group": "ticket 7"} for row in LABELLED)))
    assert [row.group for row in grouped.rows] == ["ticket 7", "ticket 7"]
    assert grouped.ignored_fields == ()
    assert grouped.digest != read_examples(jsonl(tmp_path, *LABELLED, name="b.jsonl")).digest


BAD_LABEL_ROWS = [
    ('{"text": "x", "label": }', "is no JSON"),
    ('{"text": "x"}', "lacks 'label'"),
    ('{"text": "", "label": "a"}', "'text' is empty"),
    ('{"text": null, "label": "a"}', "'text' is null; write a text"),
    ('{"text": 3, "label": "a"}', "'text' is 3"),
    ('{"text": "x", "label": null}', "'label' is null"),
    ('{"text": "x", "label": true}', "'label' is True"),
    ('{"text": "x", "label": "  "}', "'label' is empty"),
    ('{"text": "x", "label": "a\\nb"}', "holds U+000A, which nobody can see"),
    ('{"text": "x", "label": "' + "a" * 101 + '"}', "has 101 characters, allowed are 100"),
    ('{"text": "x", "text": "y", "label": "a"}', "names 'text' twice"),
    ('{"text": "x", "label": NaN}', "holds NaN, which is not JSON"),
    ('{"text": "\\ud800", "label": "a"}', "half of a surrogate pair"),
    ('["x", "a"]', "is a list, not an object"),
    ("[" * 100_000, "nested too deeply"),
    ('{"text": "x", "label": "a", "group": null}', None),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LABEL_ROWS, ids=[str(reason) for _, reason in BAD_LABEL_ROWS])
def test_bad_row_is_reported_by_line_with_its_reason(tmp_path, line, reason):
    file = jsonl(tmp_path, *LABELLED, line)
    if reason is None:
        assert len(read_examples(file).rows) == 3
        return
    error = refusal(file)
    assert f"{file}:3: " in str(error)
    assert "1 row is bad of 3" in str(error)
    assert "--skip-bad" in str(error)
    assert [problem[:8] for problem in error.problems] == ["line 3: "]
    assert reason in error.problems[0]
    skipped = read_examples(file, skip_bad=True)
    assert (len(skipped.rows), skipped.num_bad, skipped.bad_rows[0].line) == (2, 1, 3)
    assert skipped.digest == read_examples(jsonl(tmp_path, *LABELLED, name="good.jsonl")).digest


BAD_QUESTIONS = [
    ({"answers": None}, "'answers' is null; write a list"),
    ({"answers": "Ada"}, "'answers' is 'Ada'; write a list"),
    ({"answers": [None]}, "'answers[0]' is null"),
    ({"answers": [{"text": "Ada"}]}, "'answers[0]' is an object"),
    ({"answers": []}, "'unanswerable': true where the context holds no answer"),
    ({"answers": ["Ada"], "unanswerable": True}, "keep one of the two"),
    ({"answers": [], "unanswerable": "yes"}, "'unanswerable' is 'yes'"),
    ({"answers": ["a"] * 65}, "has 65 texts, allowed are 64"),
    ({"answers": ["Ada"], "context": ""}, "'context' is empty"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD_QUESTIONS, ids=[reason for _, reason in BAD_QUESTIONS])
def test_bad_question_is_refused_with_what_to_write_instead(tmp_path, fields, reason):
    file = jsonl(tmp_path, {"question": "Who?", "answers": ["Ada"]}, {"question": "Who?", **fields})
    assert reason in refusal(file).problems[0]


BAD_CONVERSATIONS = [
    ("hello", "'messages' is 'hello'"),
    ([], "the roles are none"),
    ([("user", "Hi")], "let the assistant have the last word"),
    ([("assistant", "Hi"), ("user", "Hi")], "the roles are assistant, user"),
    ([("user", "Hi"), ("user", "Hi"), ("assistant", "Hi")], "user and assistant in turn"),
    ([("user", "Hi"), ("system", "S"), ("assistant", "Hi")], "the roles are user, system, assistant"),
    ([("tool", "Hi"), ("assistant", "Hi")], "'messages[0].role' is 'tool'; allowed: system, user, assistant"),
    ([("user", ["part"]), ("assistant", "Hi")], "'messages[0].content' is a list"),
    ([("user", "Hi"), ("assistant", None)], "'messages[1].content' is null"),
    ([{"role": "user", "content": "Hi", "tool_calls": []}], "has 'tool_calls', which is not trained on"),
]


@pytest.mark.parametrize(("turns", "reason"), BAD_CONVERSATIONS, ids=[reason for _, reason in BAD_CONVERSATIONS])
def test_bad_conversation_is_refused_with_what_a_conversation_is(tmp_path, turns, reason):
    messages = turns
    if isinstance(turns, list):
        messages = [{"role": t[0], "content": t[1]} if isinstance(t, tuple) else t for t in turns]
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert reason in refusal(jsonl(tmp_path, good, {"messages": messages})).problems[0]


def test_bytes_that_are_no_utf8_spoil_their_own_line_only(tmp_path):
    file = tmp_path / "data.jsonl"
    good = [json.dumps(row).encode() for row in LABELLED]
    file.write_bytes(b"\n".join([good[0], b'{"text": "caf\xe9", "label": "transfer"}', good[1]]))
    assert "line 2: is not UTF-8 (byte 0xe9 at character 14)" in refusal(file).problems[0]
    assert len(read_examples(file, skip_bad=True).rows) == 2


def test_csv_row_with_other_than_the_headers_cells_or_bytes_is_reported_by_line(tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes(b"text,label\none,a\ntwo,b,c\nthree\ncaf\xe9,a\nfour,b\n")
    problems = refusal(file).problems
    assert "line 3: has 3 cells, the header names 2 columns" in problems[0]
    assert "line 4: has 1 cells" in problems[1]
    assert "line 5: 'text' is not UTF-8" in problems[2]
    assert [row.line for row in read_examples(file, skip_bad=True).rows] == [2, 6]


def test_csv_quote_that_is_never_closed_is_reported_where_it_opens(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text('text,label\none,a\ntwo,b\n"three,c\nfour,d\n', encoding="utf-8")
    (problem,) = refusal(file).problems
    assert "line 4: cannot be read as CSV" in problem
    assert "close each quoted cell" in problem


def test_first_bad_rows_are_listed_and_all_of_them_counted(tmp_path):
    file = jsonl(tmp_path, *LABELLED, *["{}"] * 30)
    error = refusal(file)
    assert len(error.problems) == MAX_REPORTED == 20
    assert "30 rows are bad of 32" in str(error)
    skipped = read_examples(file, skip_bad=True)
    assert (skipped.num_bad, len(skipped.bad_rows)) == (30, 20)


WRONG_FILES = [
    (b"", "is empty"),
    (b"\n \n", "is empty"),
    (b'[{"text": "a"}]', "begins a JSON array"),
    (b'{"a": 1}\n', "has 'a', which are the fields of no kind of example; allowed: text, label | prompt, completion"),
    (b'{"text": "a", "label": "b", "prompt": "c", "completion": "d"}', "Keep one kind of example in a file"),
    (b'{"text": "a", "label": "b"}\n{"text": "c", "label": "b"}\n', "every row is labelled 'b'"),
    (b'{"text": "a", "label": "b"}\n{"text": "c", "label": "B"}\n', "differs from 'b' (line 1) by case or spaces only"),
    (b'{"_provenance": {"source": "x"}}\n', "holds no examples"),
    (b"nonsense\n", "is no JSON"),
    (b"PAR1xxxx", "Parquet"),
    (b"\xff\xfe{\x00", "UTF-16; save it as UTF-8"),
    (b"\x1f\x8bgarbage", "cannot be read"),
    (gzip.compress(b'{"text": "a", "label": "b"}\n' * 1000)[:-20], "Name a readable, complete file"),
]


@pytest.mark.parametrize(("content", "reason"), WRONG_FILES, ids=[reason for _, reason in WRONG_FILES])
def test_file_that_cannot_be_used_as_a_whole_is_refused_with_the_fix(tmp_path, content, reason):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    for skip_bad in (False, True):
        assert reason in str(refusal(file, skip_bad=skip_bad))


def test_csv_without_a_header_or_with_a_column_twice_is_refused(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("My card is lost,lost_card\n", encoding="utf-8")
    assert "the first row names 'My card is lost', 'lost_card'" in str(refusal(file))
    file.write_text("text,label,text\na,b,c\n", encoding="utf-8")
    assert "two columns are named 'text'" in str(refusal(file))


def test_missing_file_is_refused_by_name(tmp_path):
    assert "No such file" in str(refusal(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (DataLimits(max_rows=1), "more than 1 rows"),
        (DataLimits(max_bytes=60), "more than 60 bytes, decompressed"),
        (DataLimits(max_line_bytes=20), "more than 20 bytes"),
        (DataLimits(max_text_chars=10), "allowed are 10"),
        (DataLimits(max_labels=1), "has 2 labels, allowed are 1"),
    ],
)
def test_file_over_a_limit_is_refused_naming_the_limit(tmp_path, limits, reason):
    assert reason in str(refusal(jsonl(tmp_path, *LABELLED), limits=limits))


def test_small_file_that_unpacks_to_a_huge_one_is_stopped_at_the_limit(tmp_path):
    file = tmp_path / "bomb.jsonl.gz"
    file.write_bytes(gzip.compress(b" " * 10_000_000))
    assert "the line has more than" in str(refusal(file))


def test_evaluation_file_may_have_fewer_labels_but_no_others(tmp_path):
    file = jsonl(tmp_path, {"text": "a", "label": "transfer"}, {"text": "b", "label": "refund"})
    labels = ("lost_card", "transfer")
    assert "'refund' is none of the 2 labels trained on" in refusal(file, labels=labels).problems[0]
    examples = read_examples(file, labels=labels, skip_bad=True)
    assert (len(examples.rows), examples.labels) == (1, labels)
