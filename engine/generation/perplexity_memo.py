"""Perplexities that were measured, kept in the cache of models."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import get_args

from engine.config import WeightFormat

# Prose of this project's documentation, so that it may be given away with it. It never changes: values stay comparable.
TEXT = Path(__file__).with_name("perplexity_text.txt")
_log = logging.getLogger(__name__)


def remembered(cache: Path, digest: str) -> dict[str, float]:
    """Perplexity by format of the model with that digest, as far as it was measured on the present text."""
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads(_memo(cache, digest).read_bytes())
        return {name: float(value) for name, value in known.items() if name in get_args(WeightFormat)}
    return {}


def remember(cache: Path, digest: str, weights: WeightFormat, value: float) -> dict[str, float]:
    """Keep a measured perplexity in the cache, where that is writable. Returns: all that are known of the model."""
    path, values = _memo(cache, digest), remembered(cache, digest) | {weights: value}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values) + "\n", encoding="utf-8")
    except OSError as error:
        _log.warning("%s cannot be written (%s): the perplexity is not kept", path, error)
    return values


def _memo(cache: Path, digest: str) -> Path:
    return cache / "perplexity" / f"{digest}-{sha256(TEXT.read_bytes()).hexdigest()[:8]}.json"
