"""The random states of the process, which a metric may draw from, in and out of a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def take_random_state(device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """States of `random` and numpy as JSON, those of torch as uint8 tensors."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    plain = {
        "random": [version, list(numbers), gauss],
        "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    tensors = {"torch": torch.random.get_rng_state()}
    if device.startswith("cuda"):
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return plain, tensors


def put_random_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> None:
    """Set the states that `take_random_state` took."""
    version, numbers, gauss = plain["random"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = plain["numpy"]
    np.random.set_state(("MT19937", np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(tensors["torch"])
    if device.startswith("cuda") and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
