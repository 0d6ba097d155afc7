"""What one document may cost to parse."""

from __future__ import annotations

from dataclasses import dataclass

# A parser's process ends by itself when it has idled for this long.
IDLE_S = 300
# Its exit status when a document ran into the memory limit.
OUT_OF_MEMORY = 3


@dataclass(frozen=True, slots=True)
class ParsingLimits:
    """Caps of one document. They are far above real documents and far below what would hurt the machine.

    `max_field_chars` is for one value of a row, `max_columns` for the values of a row.
    """

    timeout_s: float = 30.0
    max_memory_bytes: int = 1024**3
    max_chars: int = 10_000_000
    max_pages: int = 5_000
    max_rows: int = 1_000_000
    max_columns: int = 1_000
    max_field_chars: int = 1_000_000
