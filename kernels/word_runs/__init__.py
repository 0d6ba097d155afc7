"""Which words a text has: whole runs of letters and digits. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import create_string_buffer
from typing import Literal

from kernels.alone import absence, library
from kernels.word_runs.reference import blanked, missing_words_reference


def missing_words(
    words: Sequence[str], text: str, *, backend: Literal["auto", "python", "native"] = "auto"
) -> list[str]:
    """Those of `words` that are no whole run of letters and digits in `text`, in their order. Case counts.

    Args:
        words: letters and digits alone, as `str.isalnum` has it.
        backend: "auto" takes the native kernel where there is one, and Python otherwise.
    Raises: ValueError for a word of anything else; RuntimeError when "native" was asked for and is absent.
    """
    if not words:
        return []
    if not "".join(words).isalnum() or not all(words):
        wrong = next(word for word in words if not word.isalnum())
        raise ValueError(f"missing_words: {wrong!r} is no word of letters and digits alone")
    if backend == "python" or (backend == "auto" and absence() is not None):
        return missing_words_reference(words, text)
    packed, searched = "\0".join(words).encode() + b"\0", blanked(text).encode()
    is_held = create_string_buffer(len(words))
    library().switchyard_word_runs(is_held, packed, len(packed), searched, len(searched))
    return [word for word, held in zip(words, is_held.raw, strict=True) if not held]
