"""SQuAD's files as rows of question, answers and context.

    python examples/recipes/squad.py train-v1.1.json rows.jsonl --questions 2000
    python examples/recipes/squad.py dev-v2.0.json eval.jsonl --documents paragraphs.jsonl

Reads the official JSON, or JSON lines with a paragraph each (`article`, `context`, `questions`), plain or gzip. Version
2.0's questions without an answer become `unanswerable` rows. `--questions` draws as many by a hash of the question.
`--documents` writes each paragraph as a document for `switchyard ingest`, so that passages can be retrieved.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any


def read_paragraphs(file: Path) -> Iterator[dict[str, Any]]:
    """`article`, `context` and `questions` of each paragraph."""
    raw = file.read_bytes()
    content = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    first = content.split("\n", 1)[0]
    if "_provenance" in first or '"questions"' in first:
        lines = (json.loads(line) for line in content.split("\n") if line.strip())
        yield from (line for line in lines if "questions" in line)
        return
    for article in json.loads(content)["data"]:
        for paragraph in article["paragraphs"]:
            yield {"article": article["title"], "context": paragraph["context"], "questions": paragraph["qas"]}


def question_rows(paragraph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each question; its answers once each, in their order. An article stays on one side of a split."""
    for question in paragraph["questions"]:
        answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
        row = {"question": question["question"].strip(), "answers": answers, "context": paragraph["context"]}
        if not answers:
            row["unanswerable"] = True
        yield row | {"group": paragraph["article"]}


def draw(rows: list[dict[str, Any]], num: int | None) -> list[dict[str, Any]]:
    """`num` rows chosen by a hash of question and context, in their order; all where `num` is None."""
    if num is None or num >= len(rows):
        return rows
    places = sorted(range(len(rows)), key=lambda place: _place(rows[place]))[:num]
    return [rows[place] for place in sorted(places)]


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="train-v1.1.json, dev-v2.0.json and the like")
    parser.add_argument("to", type=Path, help="rows to write, as JSON lines")
    parser.add_argument("--questions", type=int, help="how many to draw; default: all")
    parser.add_argument("--documents", type=Path, help="write the paragraphs here, as documents")
    arguments = parser.parse_args()
    paragraphs = list(read_paragraphs(arguments.file))
    rows = [row for paragraph in paragraphs for row in question_rows(paragraph)]
    write(arguments.to, draw([row for row in rows if row["question"]], arguments.questions))
    if arguments.documents is not None:
        # By content: paragraphs of several files can be ingested side by side.
        documents = {
            sha256(each["context"].encode()).hexdigest()[:16]: {
                "title": each["article"].replace("_", " "),
                "text": each["context"],
            }
            for each in paragraphs
        }
        write(arguments.documents, [{"id": name} | document for name, document in documents.items()])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _place(row: dict[str, Any]) -> bytes:
    return sha256(f"{row['question']}\n{row['context']}".encode()).digest()


if __name__ == "__main__":
    main()
