"""A router comes back from its files as it was written, and files that are not a router are refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from made_router import artefact, learned, trees
from safetensors.numpy import load, save

from engine.errors import InvalidRouter
from engine.routing.artefact import ARRAYS_FILE, JSON_FILE, MAX_JSON_BYTES, read_artefact, write_artefact
from engine.routing.heads import IsotonicCurves

VALUES = np.array([[0.3, 1.0], [-0.3, np.nan]])


def damage(folder, *, described=None, arrays=None):
    """Change what the files say, with the digest made to fit."""
    content = json.loads((folder / JSON_FILE).read_text())
    if arrays is not None:
        held = dict(load((folder / ARRAYS_FILE).read_bytes()))
        held.update(arrays)
        raw = save({name: each for name, each in held.items() if each is not None})
        (folder / ARRAYS_FILE).write_bytes(raw)
        content["arrays_sha256"] = sha256(raw).hexdigest()
    content.update(described or {})
    (folder / JSON_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize("heads", [None, trees()], ids=["linear", "trees"])
def test_router_comes_back_as_it_was_written(tmp_path, heads):
    made = replace(artefact(), learned=learned(heads))
    written = write_artefact(made, tmp_path / "router")
    found = read_artefact(tmp_path / "router")
    assert found.name == written.name
    assert found.name.startswith("router-")
    for field in ("created", "keys", "arms", "ranked", "rates", "objective", "headline", "reasons", "signals"):
        assert getattr(found, field) == getattr(made, field), field
    assert (found.frontier, found.figures) == (made.frontier, made.figures)
    assert found.trained_on.tolist() == made.trained_on.tolist()
    assert found.learned.model.qualities(VALUES).tolist() == made.learned.model.qualities(VALUES).tolist()
    assert found.learned.policy.costs.tolist() == made.learned.policy.costs.tolist()


def test_isotonic_curves_come_back(tmp_path):
    made = artefact()
    curves = IsotonicCurves(np.array([[-1.0, 1.0], [0.0, 0.0]]), np.array([[0.1, 0.9], [0.5, 0.5]]))
    made = replace(made, learned=replace(made.learned, model=replace(made.learned.model, curves=curves)))
    found = write_artefact(made, tmp_path)
    assert found.learned.model.qualities(VALUES).tolist() == made.learned.model.qualities(VALUES).tolist()


def test_best_single_arm_is_kept_with_its_reason(tmp_path):
    found = write_artefact(artefact(is_learned=False), tmp_path)
    assert found.learned is None
    assert found.best_arm == "base+context"
    assert "too few" in found.headline


def test_other_contents_have_another_name(tmp_path):
    assert write_artefact(artefact(), tmp_path / "a").name != write_artefact(artefact(False), tmp_path / "b").name


def test_missing_folder_and_missing_arrays_are_named(tmp_path):
    with pytest.raises(InvalidRouter, match=r"router\.json cannot be read .*switchyard router train"):
        read_artefact(tmp_path / "none")
    write_artefact(artefact(), tmp_path)
    (tmp_path / ARRAYS_FILE).unlink()
    with pytest.raises(InvalidRouter, match=r"router\.safetensors cannot be read"):
        read_artefact(tmp_path)


def test_pipe_in_place_of_a_file_does_not_hang_the_reader(tmp_path):
    os.mkfifo(tmp_path / JSON_FILE)
    with pytest.raises(InvalidRouter, match="no regular file"):
        read_artefact(tmp_path)


def test_huge_file_is_refused_before_it_is_read_whole(tmp_path):
    with (tmp_path / JSON_FILE).open("wb") as file:
        file.truncate(10 * MAX_JSON_BYTES)
    with pytest.raises(InvalidRouter, match=r"router\.json has more than \d+ bytes"):
        read_artefact(tmp_path)


def test_arrays_of_another_router_are_refused(tmp_path):
    write_artefact(artefact(), tmp_path / "a")
    write_artefact(replace(artefact(), learned=learned(trees())), tmp_path / "b")
    (tmp_path / "a" / ARRAYS_FILE).write_bytes((tmp_path / "b" / ARRAYS_FILE).read_bytes())
    with pytest.raises(InvalidRouter, match="is not the file that"):
        read_artefact(tmp_path / "a")


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"arms": ["base", "../etc"]}, "is no arm"),
        ({"arms": ["base", "base"], "ranked": ["base", "base"]}, "named twice"),
        ({"arms": []}, "arms"),
        ({"ranked": ["base"]}, "ranked"),
        ({"rates": [0.5, 1.5]}, "rates"),
        ({"signals": ["s0", "s0"]}, "signal is named twice"),
        ({"signals": ["s0", "a b"]}, "is no name of a signal"),
        ({"signals": ["s0"]}, "normaliser.mean is float64 of shape"),
        ({"signals": []}, "needs two arms and a signal"),
        ({"keys": {}}, "'model'"),
        ({"objective": {"name": "best", "max_p95_ms": None, "epsilon": 0.1, "budget": None}}, "objective"),
        ({"rates": [float("nan"), 0.5]}, "rates"),
        ({"figures": {"x": float("inf")}}, "Out of range float values"),
        ({"arrays_sha256": "x"}, "arrays_sha256"),
    ],
)
def test_description_that_makes_no_sense_is_refused_by_name(tmp_path, described, said):
    write_artefact(artefact(), tmp_path)
    damage(tmp_path, described=described)
    with pytest.raises(InvalidRouter, match=said):
        read_artefact(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"heads.weights": np.full((2, 3), np.nan)}, "heads.weights holds a value that is not finite"),
        ({"heads.weights": np.zeros((2, 4))}, r"heads.weights is float64 of shape \(2, 4\)"),
        ({"heads.weights": np.zeros((2, 3), dtype=np.float32)}, "heads.weights is float32"),
        ({"heads.weights": None}, "heads.column is missing"),
        ({"normaliser.scale": np.zeros(2)}, "normaliser.scale holds a value that is not above 0"),
        ({"normaliser.unknown": np.array([7], dtype=np.int32)}, "normaliser.unknown holds a value outside 0 to 1"),
        ({"policy.costs": np.array([0.0, np.inf])}, "policy.costs holds"),
        ({"test.values": np.zeros((0, 2))}, "test.values holds no row"),
        ({"test.values": np.full((4, 2), np.inf)}, "test.values holds a value that is not finite"),
        ({"test.chosen": np.full(4, 2, dtype=np.int32)}, "test.chosen holds a value outside 0 to 1"),
        ({"surprise": np.zeros(1)}, "surprise is no array of a router"),
        ({"trained_on": np.zeros(1)}, "trained_on is float64"),
        ({"trained_on": None}, "trained_on"),
    ],
)
def test_array_that_does_not_fit_is_refused_by_name(tmp_path, arrays, said):
    write_artefact(artefact(), tmp_path)
    damage(tmp_path, arrays=arrays)
    with pytest.raises(InvalidRouter, match=said):
        read_artefact(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"heads.left": np.full((2, 1, 3), 3, dtype=np.int32)}, "heads.left holds a value outside 0 to 2"),
        ({"heads.column": np.full((2, 1, 3), 3, dtype=np.int32)}, "heads.column holds a value outside 0 to 2"),
        ({"heads.depth": np.array([2**30], dtype=np.int32)}, "heads.depth"),
    ],
)
def test_trees_that_lead_nowhere_are_refused(tmp_path, arrays, said):
    write_artefact(replace(artefact(), learned=learned(trees())), tmp_path)
    damage(tmp_path, arrays=arrays)
    with pytest.raises(InvalidRouter, match=said):
        read_artefact(tmp_path)


def test_bytes_that_are_no_safetensors_are_refused(tmp_path):
    write_artefact(artefact(), tmp_path)
    raw = b"\xff" * 64
    (tmp_path / ARRAYS_FILE).write_bytes(raw)
    damage(tmp_path, described={"arrays_sha256": sha256(raw).hexdigest()})
    with pytest.raises(InvalidRouter, match=r"router\.safetensors: "):
        read_artefact(tmp_path)
