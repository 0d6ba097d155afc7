"""What one file of examples may hold."""

from __future__ import annotations

from dataclasses import dataclass

from engine.generation.scoring.request import MAX_CONTINUATIONS


@dataclass(frozen=True, slots=True)
class DataLimits:
    """Caps of one file, far above data that a LoRA is trained on and below what would fill the memory.

    `max_bytes` and `max_line_bytes` count bytes after decompression, `max_labels` is what scoring compares at once.
    """

    max_bytes: int = 512 * 1024**2
    max_line_bytes: int = 4 * 1024**2
    max_rows: int = 200_000
    max_text_chars: int = 200_000
    max_label_chars: int = 100
    max_labels: int = MAX_CONTINUATIONS
    max_messages: int = 256
    max_answers: int = 64
