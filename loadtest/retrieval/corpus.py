"""Pages and questions that the retrieval bench works on."""

from __future__ import annotations

import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from engine.errors import ConfigError
from engine.retrieval.index.background import background_questions
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.parsing.formats import CONTENT_TYPES
from engine.retrieval.preparing import prepare_document
from engine.values import DocumentWrite
from loadtest.questions import DEFAULT_FILE, read_questions

REPOSITORY = Path(__file__).resolve().parents[2]
FLYIO = REPOSITORY.parent / "shared" / "data" / "kb_flyio_docs_v1.tar.gz"
_WORD = re.compile(r"[A-Za-z]{2,}")
_SECTIONS, _PARAGRAPHS, _WORDS = 4, 3, 60


@dataclass(frozen=True, slots=True)
class Pages:
    """Documents to ingest; `origin` says where they are from."""

    origin: str
    items: tuple[DocumentWrite, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some documents, and every distinct text that they are embedded by, in order."""

    items: tuple[DocumentWrite, ...]
    texts: tuple[str, ...]
    num_generated: int


def read_pages(archive: Path = FLYIO) -> Pages:
    """The Fly.io documentation where its archive is at hand, else the Markdown pages of docs/.

    Raises: ConfigError for an archive that cannot be read.
    """
    if not archive.is_file():
        files = sorted((REPOSITORY / "docs").rglob("*.md"))
        items = [DocumentWrite(f"docs/{file.relative_to(REPOSITORY / 'docs')}", file.read_bytes()) for file in files]
        return Pages(f"docs/ ({archive.name} is not in ../shared/data)", tuple(items))
    try:
        with tarfile.open(archive) as tar:
            return Pages(archive.name, tuple(_documents(tar)))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{archive}: cannot be read ({error}). Fetch it anew, or move it away.") from None


def _documents(tar: tarfile.TarFile) -> Iterator[DocumentWrite]:
    for member in tar:
        content_type = CONTENT_TYPES.get(PurePosixPath(member.name).suffix)
        opened = tar.extractfile(member) if content_type and member.isfile() else None
        if opened is not None and content_type is not None:
            yield DocumentWrite(member.name, opened.read(), content_type)


def take_sample(pages: Pages, chunker: Chunker, num_texts: int, *, seed: int = 0) -> Sample:
    """Pages in a random order until they make `num_texts` texts; where they do not suffice, generated ones follow."""
    order = random.Random(seed)
    items = list(pages.items)
    order.shuffle(items)
    words = vocabulary(pages.items)
    chosen: list[DocumentWrite] = []
    texts: dict[str, str] = {}
    while len(texts) < num_texts:
        number = len(chosen)
        item = items[number] if number < len(items) else _generated(number, words, order)
        texts.update(prepare_document(item, chunker).texts)
        chosen.append(item)
    return Sample(tuple(chosen), tuple(texts.values()), max(0, len(chosen) - len(items)))


def endless_copies(items: Sequence[DocumentWrite], *, seed: int = 0) -> Iterator[DocumentWrite]:
    """The documents again and again, each time with a third of the words of its text replaced by others as long."""
    drawn = random.Random(seed)
    by_length: dict[int, list[str]] = {}
    for word in vocabulary(items):
        by_length.setdefault(len(word), []).append(word)

    def other(match: re.Match[str]) -> str:
        return drawn.choice(by_length[len(match[0])]) if drawn.random() < 1 / 3 else match[0]

    copy = 0
    while True:
        for item in items:
            text = item.body.decode("utf-8", errors="replace")
            yield replace(item, id=f"copy {copy}/{item.id}", body=_WORD.sub(other, text).encode())
        copy += 1


def vocabulary(items: Sequence[DocumentWrite]) -> list[str]:
    """Every distinct word of the documents, in order."""
    return sorted({word for item in items for word in _WORD.findall(item.body.decode("utf-8", errors="replace"))})


def _generated(number: int, words: Sequence[str], drawn: random.Random) -> DocumentWrite:
    """A page of random words with headings and paragraphs, about as long as real ones."""
    parts = [f"# {' '.join(drawn.choices(words, k=4))}"]
    for _ in range(_SECTIONS):
        parts.append(f"## {' '.join(drawn.choices(words, k=3))}")
        parts += [" ".join(drawn.choices(words, k=_WORDS)) + "." for _ in range(_PARAGRAPHS)]
    return DocumentWrite(f"generated/{number}.md", "\n\n".join(parts).encode())


def bench_questions(*, seed: int = 0) -> list[str]:
    """About a hundred distinct questions, in a random order."""
    files = (DEFAULT_FILE, REPOSITORY / "loadtest" / "serving_questions.jsonl")
    questions = [question for file in files for question in read_questions(file)]
    distinct = list(dict.fromkeys([*questions, *background_questions()]))
    random.Random(seed).shuffle(distinct)
    return distinct
