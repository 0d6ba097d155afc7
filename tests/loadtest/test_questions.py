from __future__ import annotations

import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from engine.errors import ConfigError
from loadtest.questions import DEFAULT_FILE, ask_combined, ask_in_turn, read_questions

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_questions_are_read_in_order_without_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Où?", "id": 1}\n\n{"question": "When?"}\n', encoding="utf-8")
    assert read_questions(path) == ["Où?", "When?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no questions"),
        (b'{"question": "a"}\nnonsense\n', ":2: is not JSON"),
        (b'{"query": "a"}\n', ':1: has no text under "question"'),
        (b'{"question": "  "}\n', ':1: has no text under "question"'),
        (b"[1]\n", ':1: has no text under "question"'),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_questions(path)


def test_a_missing_file_is_refused_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.jsonl: cannot be read .* --questions"):
        read_questions(tmp_path / "absent.jsonl")


def test_every_question_is_asked_equally_often_in_an_order_of_the_seed() -> None:
    questions = [str(number) for number in range(10)]
    asked = list(itertools.islice(ask_in_turn(questions, seed=1), 30))
    assert set(Counter(asked).values()) == {3}
    assert asked == list(itertools.islice(ask_in_turn(questions, seed=1), 30))
    assert asked[:10] != list(itertools.islice(ask_in_turn(questions, seed=2), 10))


def test_the_example_questions_name_thirty_different_pages() -> None:
    rows = [json.loads(line) for line in DEFAULT_FILE.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"q{number:02d}" for number in range(1, 31)]
    assert len({row["pages"][0] for row in rows}) == len({row["question"] for row in rows}) == 30
    assert all(set(row) == {"id", "question", "pages", "answer", "topic"} for row in rows)
    assert all(len(set(row["pages"])) == len(row["pages"]) and row["answer"] for row in rows)


@pytest.mark.parametrize("release", ["v1", "v2"])
def test_every_page_of_the_example_questions_exists_in_the_documentation(release: str) -> None:
    archive = SHARED / f"kb_flyio_docs_{release}.tar.gz"
    if not archive.exists():
        pytest.skip(f"needs {archive.name} in ../shared/data, beside the repository")
    with tarfile.open(archive) as tar:
        documented = {name.partition("/docs/")[2] for name in tar.getnames()}
    pages = {page for line in DEFAULT_FILE.read_text().splitlines() for page in json.loads(line)["pages"]}
    assert pages - documented == set()


def test_combined_questions_are_hardly_ever_alike_and_a_seed_repeats_them() -> None:
    questions = read_questions(DEFAULT_FILE)
    first, again, other = (list(itertools.islice(ask_combined(questions, 3, seed), 500)) for seed in (0, 0, 1))
    assert first == again
    assert len(set(first)) > 480 and len(set(first) & set(other)) < 20
    assert all(sum(question in text for question in questions) >= 3 for text in first)


def test_more_combined_questions_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--combine 3: there are only 2 questions"):
        ask_combined(["a", "b"], 3, 0)
