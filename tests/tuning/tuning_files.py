"""Files of examples that a tiny model learns in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABELS = ("card_lost", "top_up", "refund")
_WORDS = ("volume", "invoice", "password")
_LETTERS = "abcdefghijklmnop "


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def noise(draw: random.Random, count: int = 30) -> str:
    return "".join(draw.choices(_LETTERS, k=count)).strip()


def labelled(count: int, seed: int = 0, labels: Sequence[str] = LABELS) -> list[dict[str, Any]]:
    """Texts that say again and again what they are about."""
    draw = random.Random(seed)
    return [
        {"text": f"{noise(draw, 20)} {' '.join([_WORDS[i % 3]] * 4)}", "label": labels[i % 3]} for i in range(count)
    ]


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions whose contexts differ, and whose answers stand there."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        answer = ("month", "command", "days")[i % 3]
        context = f"{noise(draw)} {answer} {noise(draw)}"
        rows.append(
            {"question": f"when {noise(draw, 20)}?", "answers": [answer], "context": context, "document": f"d{i}"}
        )
    return rows


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"hello {noise(draw)}"},
                {"role": "assistant", "content": "The day."},
            ]
        }
        for _ in range(count)
    ]
