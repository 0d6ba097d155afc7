"""Embeddings of training inputs beside an adapter: read as they were written, refused by what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from engine.errors import InvalidAdapter
from engine.generation.adapters.inputs import inputs_content, read_inputs
from engine.generation.adapters.manifest import AdapterManifest, InputsFile, parse_manifest
from engine.generation.adapters.registry import AdapterRegistry

FILE = "inputs.safetensors"


def unit_rows(rows: int = 5, dimension: int = 8) -> NDArray[np.float16]:
    drawn = np.random.default_rng(1).normal(size=(rows, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def described(content: bytes, **changed: Any) -> AdapterManifest:
    about = {"rows": 5, "dimension": 8, "encoder": "tiny", "encoder_digest": "e" * 64}
    return AdapterManifest(inputs=InputsFile(**about | {"sha256": sha256(content).hexdigest()} | changed))


def made(folder: Path, content: bytes, **changed: Any) -> AdapterManifest:
    """An adapter's folder with such a file of inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = described(content, **changed)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text("weights")
    (folder / "switchyard.json").write_text(manifest.model_dump_json())
    (folder / FILE).write_bytes(content)
    return manifest


def test_inputs_are_read_as_they_were_written_and_cannot_be_changed(tmp_path: Path):
    embeddings = unit_rows()
    manifest = made(tmp_path, inputs_content(embeddings))
    found = read_inputs(tmp_path, manifest, "bot")
    assert found is not None and (found.encoder, found.encoder_digest) == ("tiny", "e" * 64)
    assert found.embeddings.dtype == np.float16
    np.testing.assert_array_equal(found.embeddings, embeddings)
    with pytest.raises(ValueError, match="read-only"):
        found.embeddings[0] = 0


def test_adapter_without_inputs_has_none_whatever_lies_in_its_folder(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"\xff")
    assert read_inputs(tmp_path, AdapterManifest(), "bot") is None
    assert parse_manifest(b'{"task": "qa"}', "bot").inputs is None


def test_inputs_are_read_without_torch():
    code = "import sys, engine.generation.adapters.inputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def stored(embeddings: NDArray[Any], **others: NDArray[Any]) -> bytes:
    return save({"embeddings": embeddings, **others})


def scaled(factor: float, row: int = 3) -> bytes:
    rows = unit_rows().astype(np.float32)
    rows[row] *= factor
    return stored(rows.astype(np.float16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not safetensors"),
        (b"\xff" * 64, "is not safetensors"),
        (b"\x08" + b"\0" * 7 + b"{}      ", "holds nothing; it must hold embeddings alone"),
        (save({"rows": unit_rows()}), "holds rows; it must hold embeddings alone"),
        (stored(unit_rows(), more=unit_rows()), "holds embeddings, more; it must"),
        (stored(unit_rows().astype(np.float32)), r"holds float32 \[5, 8\], its manifest says float16 \[5, 8\]"),
        (stored(unit_rows(4)), r"holds float16 \[4, 8\], its manifest says float16 \[5, 8\]"),
        (stored(unit_rows().reshape(8, 5)), r"holds float16 \[8, 5\]"),
        (stored(unit_rows().ravel()), r"holds float16 \[40\]"),
        (scaled(np.nan), r"row 3 has the length nan instead of 1 \(1 such rows\)"),
        (scaled(np.inf, row=0), "row 0 has the length inf"),
        (scaled(0.0), "row 3 has the length 0 instead of 1"),
        (scaled(1.01), "row 3 has the length 1.01 instead of 1"),
    ],
)
def test_broken_inputs_are_refused_by_what_is_wrong_and_never_added(tmp_path: Path, content: bytes, message: str):
    manifest = made(tmp_path / "made", content)
    with pytest.raises(InvalidAdapter, match=f"adapter 'bot' cannot be loaded: inputs.safetensors:? ?{message}"):
        read_inputs(tmp_path / "made", manifest, "bot")
    registry = AdapterRegistry(tmp_path / "adapters")
    with pytest.raises(InvalidAdapter, match=FILE):
        registry.add("bot", tmp_path / "made")
    assert registry.names() == []


def remove(file: Path) -> None:
    file.unlink()


def link_out(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.truncate(1 << 30)  # sparse: takes no room


def change(file: Path) -> None:
    file.write_bytes(inputs_content(unit_rows()[::-1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"inputs.safetensors cannot be read \(No such file"),
        (link_out, "inputs.safetensors is a link out of its folder"),
        (pipe, "inputs.safetensors is no regular file"),
        (grow, "inputs.safetensors has more than"),
        (change, r"inputs.safetensors has the SHA-256 [0-9a-f]{12}\.\.\., its manifest says [0-9a-f]{12}\.\.\.; copy"),
    ],
)
def test_file_that_is_not_the_one_of_the_manifest_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
):
    manifest = made(tmp_path / "made", inputs_content(unit_rows()))
    damage(tmp_path / "made" / FILE)
    with pytest.raises(InvalidAdapter, match=f"adapter 'bot' cannot be loaded: {message}"):
        read_inputs(tmp_path / "made", manifest, "bot")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 4097}, "inputs.rows: Input should be less than or equal to 4096"),
        ({"rows": 0}, "inputs.rows: Input should be greater than or equal to 1"),
        ({"dimension": 8193}, "inputs.dimension: Input should be less than or equal to 8192"),
        ({"file": "../adapter_model.safetensors"}, "inputs.file: Input should be 'inputs.safetensors'"),
        ({"encoder": ""}, "inputs.encoder: String should have at least 1 character"),
        ({"encoder_digest": "E" * 64}, "inputs.encoder_digest: String should match pattern"),
        ({"sha256": "0" * 63}, "inputs.sha256: String should match pattern"),
    ],
)
def test_manifest_beyond_the_caps_is_refused_naming_the_field(changed: dict[str, Any], message: str):
    content = json.loads(described(b"").model_dump_json())
    content["inputs"] |= changed
    with pytest.raises(InvalidAdapter, match=f"adapter 'bot' cannot be loaded: switchyard.json .*{message}"):
        parse_manifest(json.dumps(content).encode(), "bot")


def test_inputs_travel_with_a_version_and_change_its_digest(tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "adapters")
    manifest = made(tmp_path / "made", inputs_content(unit_rows()))
    first = registry.add("bot", tmp_path / "made")
    assert read_inputs(registry.locate("bot"), manifest, "bot") is not None
    made(tmp_path / "made", inputs_content(unit_rows()[::-1]))
    assert registry.add("bot", tmp_path / "made") != first


def test_inputs_changed_by_hand_are_put_right_when_their_version_is_added_again(tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "adapters")
    manifest = made(tmp_path / "made", inputs_content(unit_rows()))
    version = registry.add("bot", tmp_path / "made")
    change(registry.locate("bot") / FILE)
    with pytest.raises(InvalidAdapter, match="has the SHA-256"):
        read_inputs(registry.locate("bot"), manifest, "bot")
    assert registry.add("bot", tmp_path / "made") == version
    assert read_inputs(registry.locate("bot"), manifest, "bot") is not None
