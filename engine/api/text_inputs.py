"""`input` of requests that take a text or a list of texts."""

from __future__ import annotations

from typing import Any


def one_or_many(value: Any) -> Any:
    """Refuse anything else before it is read as one of the two. Raises: ValueError."""
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        raise ValueError("takes a text or a list of texts")
    return value


def some_texts(value: str | list[str], most: int, what: str = "texts") -> str | list[str]:
    """Raises: ValueError for none, more than `most`, or one without a word; it is named by its place."""
    texts = [value] if isinstance(value, str) else value
    if not 1 <= len(texts) <= most:
        raise ValueError(f"holds {len(texts)} {what}; send 1 to {most} in a request")
    empty = next((index for index, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise ValueError("is empty; send a text" if isinstance(value, str) else f"text {empty} is empty; leave it out")
    return value
