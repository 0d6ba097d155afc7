"""A mixed load for the router: questions of six sources with their right answers, and the documents behind them.

python -m loadtest.router.load /tmp/router-load
python -m loadtest.router.load /tmp/router-load --each 50 --seed 1 --data ../shared/data
switchyard ingest /tmp/router-load/documents --source load --collection load
switchyard router collect /tmp/router-load/questions.jsonl --collection load --no-text --out outcomes.jsonl.gz
switchyard compare /tmp/router-load/squad.jsonl --collection load --updated-kb /tmp/router-load/updates.jsonl

| source | questions | known by | licence |
|---|---|---|---|
| banking77 | test split, less what the training split has too | an adapter tuned on its training split | CC BY 4.0 |
| phrasebank | Financial PhraseBank, test split | an adapter tuned on its training split | CC BY-NC-SA 3.0 |
| squad | SQuAD 1.1, development | the documents, which are all paragraphs | CC BY-SA 4.0 |
| popqa | PopQA | the documents for half of them, the model's memory for some | MIT, paragraphs CC BY-SA |
| stackfaq | StackFAQ, paraphrased questions | the documents, which are all entries | CC BY-SA 3.0 |
| flyio | examples/flyio_questions.jsonl, 30 | the documents, which are all pages | Apache-2.0 |

Questions of one group share an article, a label, an entry or a page. Each source has a file of its own too, and
updates.jsonl has paragraphs of SQuAD in which a number that answers a question is another one. The same seed gives the
same files. The texts are under licences of their own (PhraseBank's allows no commercial use), so they are written
outside of the repository only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.cli.judged_files import objects
from engine.errors import ConfigError, SwitchyardError
from loadtest.environment import REPOSITORY
from loadtest.public_data import DATA, normalised
from loadtest.questions import DEFAULT_FILE
from loadtest.retrieval.corpus import read_pages

EACH, SEED = 200, 7
# `switchyard ingest --source`: what the ids of all documents begin with.
SOURCE = "load"
QUESTIONS_FILE, UPDATES_FILE, DOCUMENTS = "questions.jsonl", "updates.jsonl", "documents"
# Changed paragraphs, and how far their numbers move: a year stays one, and no digit gives the old one away.
NUM_UPDATES, MOVED_BY = 20, 13
MAX_PARAPHRASES = 3
_NUMBER = re.compile(r"[1-9]\d{1,3}")
_FLYIO = "kb_flyio_docs_v1.tar.gz"

Row = dict[str, Any]


@dataclass(slots=True)
class Part:
    """What one source has: questions as rows of a questions file, documents by id (without SOURCE)."""

    questions: list[Row]
    documents: dict[str, Row] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)


def make_load(data: Path, folder: Path, *, each: int = EACH, seed: int = SEED) -> dict[str, Part]:
    """Write questions.jsonl and documents/ into `folder`; returns what each source gave.

    Raises: ConfigError naming a file that is missing or malformed, or a folder in the repository.
    """
    if folder.resolve().is_relative_to(REPOSITORY):
        raise ConfigError(
            f"{folder}: is in the repository, where texts under other licences must not be. Name a folder outside."
        )
    parts = {
        name: _sampled(name, part, each, seed)
        for name, part in (
            ("banking77", _banking(data)),
            ("phrasebank", _labelled(data / "fpb_test.jsonl.gz")),
            ("squad", _squad(data)),
            ("popqa", _popqa(data, each, seed)),
            ("stackfaq", _stackfaq(data)),
            ("flyio", _flyio(data)),
        )
    }
    documents = folder / DOCUMENTS
    try:
        documents.mkdir(parents=True, exist_ok=True)
        rows = [{"source": name, **row} for name, part in parts.items() for row in part.questions]
        _write_lines(folder / QUESTIONS_FILE, rows)
        _write_lines(folder / UPDATES_FILE, _updates(_squad(data), seed))
        for name, part in parts.items():
            _write_lines(folder / f"{name}.jsonl", part.questions)
            if part.documents:
                _write_lines(documents / f"{name}.jsonl", [{"id": id, **row} for id, row in part.documents.items()])
            for path, body in part.pages.items():
                file = documents / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(body)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}). Name a writable folder.") from None
    return parts


def _labelled(file: Path, *, without: frozenset[str] = frozenset(), by_label: bool = False) -> Part:
    rows = []
    for where, row in objects(file):
        text = _text(row, where, "text")
        if normalised(text) not in without:
            label = _text(row, where, "label")
            group = {"group": f"label {label}"} if by_label else {}
            rows.append({"id": _text(row, where, "id"), "question": text, "label": label, **group})
    return Part(rows)


def _banking(data: Path) -> Part:
    seen = frozenset(normalised(_text(row, where, "text")) for where, row in objects(data / "banking77_train.jsonl.gz"))
    return _labelled(data / "banking77_test.jsonl.gz", without=seen, by_label=True)


def _squad(data: Path) -> Part:
    part = Part([])
    for where, row in objects(data / "squad_v1_dev.jsonl.gz"):
        article = _text(row, where, "article")
        document = f"squad/{article}/{row['paragraph_index']}"
        part.documents[document] = {"title": article.replace("_", " "), "text": _text(row, where, "context")}
        part.questions += [
            _answered(each["id"], each["question"], [answer["text"] for answer in each["answers"]], article, document)
            for each in row["questions"]
        ]
    return part


def _updates(squad: Part, seed: int) -> list[Row]:
    """Paragraphs with an answer that is a number, which is moved; one of an article at most."""
    rows: dict[str, Row] = {}
    questions = sorted(squad.questions, key=lambda row: str(row["id"]))
    random.Random(f"{seed} updates").shuffle(questions)
    for row in questions:
        [document], before = row["documents"], row["answers"][0]
        text = squad.documents[document.removeprefix(f"{SOURCE}/")]["text"]
        if row["group"] in rows or len(row["answers"]) > 1 or not _NUMBER.fullmatch(before):
            continue
        after = str(int(before) + MOVED_BY)
        alone = rf"(?<![\w.,]){before}(?!\w|[.,]\d)"
        if after in text or text.count(before) != len(re.findall(alone, text)):
            continue
        rows[row["group"]] = {
            "id": document,
            "text": re.sub(alone, after, text),
            "question": row["question"],
            "answer_before": before,
            "answer_after": after,
        }
    return list(rows.values())[:NUM_UPDATES]


def _popqa(data: Path, each: int, seed: int) -> Part:
    """Half of the questions have paragraphs, all of which are documents; of the others nothing is there."""
    with_paragraphs, without = Part([]), Part([])
    for where, row in objects(data / "popqa.jsonl.gz"):
        id, question = _text(row, where, "id"), _text(row, where, "question")
        paragraphs = row.get("paragraphs") or []
        for paragraph in paragraphs:
            with_paragraphs.documents[_paragraph_id(paragraph)] = {
                "title": paragraph["title"],
                "text": paragraph["text"],
            }
        supporting = [_paragraph_id(paragraph) for paragraph in paragraphs if paragraph["supporting"]]
        if supporting:
            with_paragraphs.questions.append(_answered(id, question, row["answers"], supporting[0], *supporting))
        else:
            without.questions.append(_answered(id, question, row["answers"], row.get("subject") or id))
    half = _sampled("popqa with", with_paragraphs, each // 2, seed)
    return Part(half.questions + _sampled("popqa without", without, each - each // 2, seed).questions, half.documents)


def _paragraph_id(paragraph: Row) -> str:
    content = f"{paragraph['title']}\n{paragraph['text']}"
    return f"popqa/{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _stackfaq(data: Path) -> Part:
    part = Part([])
    answers: dict[str, list[str]] = {}
    for where, row in objects(data / "stackfaq_corpus.jsonl.gz"):
        entry = _text(row, where, "id")
        answers[entry] = [text for text in row["answers"] if text.strip()]
        part.documents[f"stackfaq/{entry}"] = {"title": row["question"], "text": "\n\n".join(answers[entry])}
    asked: dict[str, list[Row]] = {}
    for where, row in objects(data / "stackfaq_queries.jsonl.gz"):
        asked.setdefault(_text(row, where, "relevant"), []).append({"id": row["id"], "text": _text(row, where, "text")})
    for entry, rows in asked.items():
        for row in rows:
            # What other people ask and mean the same.
            others = [each["text"] for each in rows if each is not row][:MAX_PARAPHRASES]
            asks = _answered(row["id"], row["text"], answers[entry], entry, f"stackfaq/{entry}")
            part.questions.append(asks | {"paraphrases": others} if others else asks)
    return part


def _flyio(data: Path) -> Part:
    archive = data / _FLYIO
    if not archive.is_file():
        raise ConfigError(f"{archive}: cannot be read (no such file). Name the folder with --data.")
    pages = {f"flyio/{page.id.partition('/docs/')[2]}": page.body for page in read_pages(archive).items}
    questions = [
        _answered(
            _text(row, where, "id"),
            _text(row, where, "question"),
            [_text(row, where, "answer")],
            row["pages"][0],
            *(f"flyio/{page}" for page in row["pages"]),
        )
        for where, row in objects(DEFAULT_FILE)
    ]
    return Part(questions, pages=pages)


def _answered(id: str, question: str, answers: Iterable[str], group: str, *documents: str) -> Row:
    return {
        "id": id,
        "group": group,
        "question": question,
        # An answer that several annotators gave is one.
        "answers": list(dict.fromkeys(answers)),
        "documents": [f"{SOURCE}/{document}" for document in documents],
    }


def _sampled(name: str, part: Part, each: int, seed: int) -> Part:
    """At most `each` of the questions, in the order of the draw; their ids begin with the source."""
    draw = random.Random(f"{seed} {name}")
    chosen = draw.sample(part.questions, min(each, len(part.questions)))
    source = name.partition(" ")[0]
    named = [
        {**row, "id": row["id"] if row["id"].startswith(f"{source}/") else f"{source}/{row['id']}"} for row in chosen
    ]
    return Part(named, part.documents, part.pages)


def _text(row: Row, where: str, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: has no text under {name!r}.")
    return value


def _write_lines(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def _lines(parts: dict[str, Part]) -> Iterator[tuple[str, ...]]:
    for name, part in parts.items():
        groups = {row.get("group", row["id"]) for row in part.questions}
        yield name, f"{len(part.questions):,}", f"{len(groups):,}", f"{len(part.documents) + len(part.pages):,}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the load and print what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where questions.jsonl and documents/ are written")
    parser.add_argument(
        "--each", type=int, default=EACH, help=f"questions of each source, default {EACH}; Fly.io has 30"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"draws the questions, default {SEED}")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of the data sets, default {DATA}")
    given = parser.parse_args(arguments)
    try:
        parts = make_load(given.data, given.folder, each=given.each, seed=given.seed)
    except SwitchyardError as error:
        sys.exit(f"loadtest.router.load: {error}")
    table = Table(box=None, header_style="bold")
    table.add_column("source")
    for name in ("questions", "groups", "documents"):
        table.add_column(name, justify="right")
    for line in _lines(parts):
        table.add_row(*line)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"{given.folder}; ingest {DOCUMENTS}/ with --source {SOURCE}, then: switchyard router collect")


if __name__ == "__main__":
    main()
