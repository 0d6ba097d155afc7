"""Scores of labels as JSON values: a tenth of what their digits would take."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import numpy as np

from engine.tuning.calibration import Floats


def pack_scores(scores: Floats) -> dict[str, Any]:
    """[N, L] log-probabilities, rounded to float32: closer than the model computes them."""
    return {"shape": list(scores.shape), "float32": b64encode(scores.astype("<f4").tobytes()).decode()}


def unpack_scores(packed: dict[str, Any]) -> Floats:
    """What `pack_scores` was given, as rounded there."""
    return np.frombuffer(b64decode(packed["float32"]), "<f4").reshape(packed["shape"]).astype(np.float64)
