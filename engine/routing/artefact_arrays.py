"""The arrays of a router, by name: written from its parts, and made into them again with each one checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.routing.heads import (
    Floats,
    Integers,
    IsotonicCurves,
    LinearHeads,
    Normaliser,
    PlattCurves,
    Policy,
    QualityModel,
    TreeHeads,
)

if TYPE_CHECKING:
    from engine.routing.artefact import Learned

Arrays = dict[str, NDArray[np.generic]]
MAX_DEPTH = 16
_TREES = ("column", "threshold", "left", "right", "value")


def arrays_of(learned: Learned | None, trained_on: NDArray[np.uint64]) -> Arrays:
    """Every array of a router by its name in the file."""
    arrays: Arrays = {"trained_on": trained_on}
    if learned is None:
        return arrays
    model, policy, test = learned.model, learned.policy, learned.self_test
    arrays["normaliser.mean"] = model.normaliser.mean
    arrays["normaliser.scale"] = model.normaliser.scale
    arrays["normaliser.unknown"] = model.normaliser.unknown
    arrays["heads.bias"] = model.heads.bias
    if isinstance(model.heads, LinearHeads):
        arrays["heads.weights"] = model.heads.weights
    else:
        arrays |= {f"heads.{name}": getattr(model.heads, name) for name in _TREES}
        arrays["heads.depth"] = np.array([model.heads.depth], dtype=np.int32)
    if isinstance(model.curves, PlattCurves):
        arrays |= {"curves.slope": model.curves.slope, "curves.offset": model.curves.offset}
    else:
        arrays |= {"curves.xs": model.curves.xs, "curves.ys": model.curves.ys}
    arrays["policy.costs"] = policy.costs
    arrays["policy.confidence"] = np.array([policy.slope, policy.offset])
    arrays |= {"test.values": test.values, "test.qualities": test.qualities, "test.chosen": test.chosen}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def trained_on_from(arrays: Arrays) -> NDArray[np.uint64]:
    """Raises: ValueError, KeyError."""
    found = arrays["trained_on"]
    if found.dtype != np.uint64 or found.ndim != 1:
        raise ValueError(f"trained_on is {found.dtype} of {found.ndim} dimensions, not uint64 of 1")
    return found.astype(np.uint64)


def learned_from(
    arrays: Arrays, *, num_arms: int, num_signals: int
) -> tuple[QualityModel, Policy, tuple[Floats, Floats, Integers]]:
    """The model, the policy and the rows of the self-test. Raises: ValueError naming the array."""
    left = _Arrays(arrays)
    normaliser = Normaliser(
        left.floats("normaliser.mean", (num_signals,)),
        left.floats("normaliser.scale", (num_signals,)),
        left.integers("normaliser.unknown", (None,), below=num_signals),
    )
    if not (normaliser.scale > 0).all():
        raise ValueError("normaliser.scale holds a value that is not above 0")
    heads: LinearHeads | TreeHeads
    bias = left.floats("heads.bias", (num_arms,))
    if "heads.weights" in arrays:
        heads = LinearHeads(left.floats("heads.weights", (num_arms, normaliser.num_columns)), bias)
    else:
        heads = _trees(left, bias, num_arms, normaliser.num_columns)
    curves: PlattCurves | IsotonicCurves
    if "curves.slope" in arrays:
        curves = PlattCurves(left.floats("curves.slope", (num_arms,)), left.floats("curves.offset", (num_arms,)))
    else:
        xs = left.floats("curves.xs", (num_arms, None))
        curves = IsotonicCurves(xs, left.floats("curves.ys", xs.shape))
        if not xs.shape[1] or (np.diff(xs, axis=1) < 0).any() or (np.diff(curves.ys, axis=1) < 0).any():
            raise ValueError("curves.xs or curves.ys falls, or is empty")
        if (curves.ys < 0).any() or (curves.ys > 1).any():
            raise ValueError("curves.ys holds a quality outside 0 to 1")
    confidence = left.floats("policy.confidence", (2,))
    policy = Policy(left.floats("policy.costs", (num_arms,)), float(confidence[0]), float(confidence[1]))
    values = left.floats("test.values", (None, num_signals), may_be_unknown=True)
    rows = len(values)
    if not rows:
        raise ValueError("test.values holds no row, so the router cannot be tested")
    test = (
        values,
        left.floats("test.qualities", (rows, num_arms)),
        left.integers("test.chosen", (rows,), below=num_arms),
    )
    left.check_empty()
    return QualityModel(normaliser, heads, curves), policy, test


def _trees(left: _Arrays, bias: Floats, num_arms: int, num_columns: int) -> TreeHeads:
    column = left.integers("heads.column", (num_arms, None, None), below=num_columns)
    shape, num_nodes = column.shape, column.shape[2]
    depth = left.integers("heads.depth", (1,), below=MAX_DEPTH + 1)
    return TreeHeads(
        column=column,
        threshold=left.floats("heads.threshold", shape),
        left=left.integers("heads.left", shape, below=num_nodes),
        right=left.integers("heads.right", shape, below=num_nodes),
        value=left.floats("heads.value", shape),
        bias=bias,
        depth=int(depth[0]),
    )


class _Arrays:
    """Arrays that are taken out by name, each of one kind and shape."""

    def __init__(self, arrays: Arrays) -> None:
        self._left = {name: array for name, array in arrays.items() if name != "trained_on"}

    def floats(self, name: str, shape: tuple[int | None, ...], *, may_be_unknown: bool = False) -> Floats:
        """Of float64, finite; NaN is allowed where `may_be_unknown`."""
        array = self._take(name, shape, np.dtype(np.float64)).astype(np.float64)
        checked = array[~np.isnan(array)] if may_be_unknown else array
        if not np.isfinite(checked).all():
            raise ValueError(f"{name} holds a value that is not finite")
        return array

    def integers(self, name: str, shape: tuple[int | None, ...], *, below: int) -> Integers:
        """Of int32, from 0 to below `below`."""
        array = self._take(name, shape, np.dtype(np.int32)).astype(np.int32)
        if array.size and (array.min() < 0 or array.max() >= below):
            raise ValueError(f"{name} holds a value outside 0 to {below - 1}")
        return array

    def check_empty(self) -> None:
        """Raises: ValueError where an array has no place in a router."""
        if self._left:
            raise ValueError(f"{min(self._left)[:80]} is no array of a router")

    def _take(self, name: str, shape: tuple[int | None, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        if name not in self._left:
            raise ValueError(f"{name} is missing")
        array = self._left.pop(name)
        fits = array.ndim == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not {dtype} of ({wanted})")
        return array
