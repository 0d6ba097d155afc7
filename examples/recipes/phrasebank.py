"""Financial PhraseBank's sentences as rows of text and label, the difficult ones in a file of their own.

    python examples/recipes/phrasebank.py Sentences_50Agree.txt --to phrasebank

Reads the published files (`sentence@label`, Latin-1), or JSON lines with `text` and `label`, plain or gzip. Writes
rows.jsonl, eval.jsonl (a share of the sentences, drawn by a hash) and exceptions.jsonl: sentences of the rest that turn
on a negation, or on which of two numbers is larger.

The data is licensed CC BY-NC-SA 3.0, for non-commercial use: neither it nor an adapter trained on it may be sold.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

NEGATION = re.compile(r"\b(?:not|no|nor|never|neither|without|none|cannot)\b|n ?['’]t\b", re.IGNORECASE)
TWO_NUMBERS = re.compile(r"\b(?:from|against|compared)\b.*\d", re.IGNORECASE)


def read_rows(file: Path) -> Iterator[tuple[str, str]]:
    """Text and label of each sentence."""
    raw = file.read_bytes()
    raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    if raw.startswith(b"{"):
        lines = (json.loads(line) for line in raw.decode().split("\n") if line.strip())
        yield from ((line["text"], line["label"]) for line in lines if "text" in line)
        return
    for line in raw.decode("latin-1").splitlines():
        text, found, label = line.rpartition("@")
        if found:
            yield text.strip(), label.strip()


def is_exception(text: str) -> bool:
    """Whether a negation or a comparison of two numbers is likely to decide."""
    return bool(NEGATION.search(text)) or (bool(TWO_NUMBERS.search(text)) and len(re.findall(r"\d+", text)) > 1)


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="Sentences_50Agree.txt or another one of the four")
    parser.add_argument("--to", type=Path, default=Path("phrasebank"), help="folder to write into")
    parser.add_argument("--hold-out", type=float, default=0.1, help="share of the sentences for eval.jsonl")
    arguments = parser.parse_args()
    # A sentence that has two labels says nothing.
    labels: dict[str, set[str]] = {}
    for text, label in read_rows(arguments.file):
        labels.setdefault(text, set()).add(label)
    rows = [{"text": text, "label": next(iter(each))} for text, each in labels.items() if len(each) == 1]
    held_out = [_place(row["text"]) < arguments.hold_out for row in rows]
    train = [row for row, is_out in zip(rows, held_out, strict=True) if not is_out]
    arguments.to.mkdir(parents=True, exist_ok=True)
    _write(arguments.to / "eval.jsonl", [row for row, is_out in zip(rows, held_out, strict=True) if is_out])
    _write(arguments.to / "rows.jsonl", [row for row in train if not is_exception(row["text"])])
    _write(arguments.to / "exceptions.jsonl", [row for row in train if is_exception(row["text"])])


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(sha256(" ".join(text.lower().split()).encode()).digest()[:6], "big") / 2**48


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
