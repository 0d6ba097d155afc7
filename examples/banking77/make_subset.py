"""Ten intents of banking77's training split as two small files: 40 rows of each to train on, 20 to judge by.

    python examples/banking77/make_subset.py train.csv

`train.csv` is banking_data/train.csv of github.com/PolyAI-LDN/task-specific-datasets, or the same rows as JSONL with
`text` and `label`. Rows are drawn by a hash of their text, so their order in the file does not matter, and no two of
them nearly repeat each other.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from engine.tuning.data.rows import LabelRow
from engine.tuning.guard.alike import Alike

# Pairs that are easily confused are among them: two ways of losing something, two of not receiving a card, three of
# money that is late.
INTENTS = (
    "activate_my_card",
    "card_arrival",
    "card_delivery_estimate",
    "cash_withdrawal_not_recognised",
    "change_pin",
    "exchange_rate",
    "lost_or_stolen_card",
    "pending_card_payment",
    "pending_transfer",
    "transfer_not_received_by_recipient",
)
NUM_TRAIN, NUM_EVAL = 40, 20
SEED = 77
PROVENANCE = {
    "dataset": "banking77, ten of its 77 intents",
    "source": "https://github.com/PolyAI-LDN/task-specific-datasets",
    "path": "banking_data/train.csv",
    "commit": "57ec275d8078af65b7731c2a98be812d844a6d6b",
    "licence": "CC BY 4.0",
    "attribution": "Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, 2020 (arXiv:2003.04807)",
}


def read_rows(file: Path) -> Iterator[tuple[str, str]]:
    """Text and label of each row of a CSV with text and category, or of a JSONL with text and label; plain or gzip."""
    raw = file.read_bytes()
    content = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    if content.startswith("{"):
        rows = (json.loads(line) for line in content.splitlines() if line.strip())
        yield from ((row["text"], row["label"]) for row in rows if "text" in row)
    else:
        yield from ((row["text"], row["category"]) for row in csv.DictReader(io.StringIO(content)))


def draw(rows: list[tuple[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and evaluation rows, label by label. Raises: SystemExit where a label has too few."""
    wanted = sorted({(" ".join(text.split()), label) for text, label in rows if label in INTENTS}, key=_place)
    clusters = Alike([LabelRow(line, *row) for line, row in enumerate(wanted, start=1)]).clusters
    # The first of a near-duplicate cluster stands for it; a cluster with two labels is left out by all but the first.
    distinct = [row for place, row in enumerate(wanted) if clusters[place] == place]
    counts = Counter(label for _, label in distinct)
    for intent in INTENTS:
        if counts[intent] < NUM_TRAIN + NUM_EVAL:
            raise SystemExit(f"{intent}: {counts[intent]} different rows, needed are {NUM_TRAIN + NUM_EVAL}")
    train: list[dict[str, str]] = []
    evaluation: list[dict[str, str]] = []
    for intent in INTENTS:
        drawn = [{"text": text, "label": label} for text, label in distinct if label == intent]
        train += drawn[:NUM_TRAIN]
        evaluation += drawn[NUM_TRAIN : NUM_TRAIN + NUM_EVAL]
    return train, evaluation


def write(file: Path, rows: list[dict[str, str]], split: str) -> None:
    """JSON lines after a provenance line."""
    lines = [{"_provenance": {**PROVENANCE, "split": split, "rows": len(rows)}}, *rows]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Write train.jsonl and eval.jsonl beside this file, or into --to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="banking77's train.csv")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="folder to write into")
    arguments = parser.parse_args()
    train, evaluation = draw(list(read_rows(arguments.file)))
    how = f"of each intent, drawn from the official train split by SHA-256 of seed {SEED} and text; no near-duplicates"
    write(arguments.to / "train.jsonl", train, f"{NUM_TRAIN} rows {how}")
    write(arguments.to / "eval.jsonl", evaluation, f"{NUM_EVAL} other rows {how}")


def _place(row: tuple[str, str]) -> tuple[bytes, str]:
    return sha256(f"{SEED}\n{row[0]}".encode()).digest(), row[1]


if __name__ == "__main__":
    main()
