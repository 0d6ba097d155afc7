"""An adapter's folder as far as it can be checked without the base model. No torch.

Whether its tensors fit the model's layers and sizes, and are finite, is known where they are loaded.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from engine.errors import InvalidAdapter
from engine.generation.adapters.config_file import CONFIG_FILE, parse_config
from engine.generation.adapters.content import WEIGHTS_FILE, content_digest, read_contents
from engine.generation.adapters.host import AdapterInfo
from engine.generation.adapters.inputs import read_inputs
from engine.generation.adapters.manifest import INPUTS_FILE, MANIFEST_FILE, AdapterManifest, check_base, parse_manifest

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
KEY = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj\.lora_(A|B)\.weight"
)
_DTYPES = ("F32", "BF16", "F16")


def refuse_pickled(folder: Path, name: str) -> None:
    """Raise InvalidAdapter where the folder is not there, or holds pickled weights alone."""
    if not folder.is_dir():
        raise InvalidAdapter(name, "its folder is not there")
    if not (folder / WEIGHTS_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise InvalidAdapter(name, "it holds adapter_model.bin, which may run code; save it with safe_serialization")


def inspect_adapter(
    folder: Path, name: str, *, model_digest: str, max_rank: int
) -> tuple[AdapterInfo, dict[str, bytes]]:
    """Read and check the adapter in `folder` without its model: what it is, and the contents of its files by name.

    The training inputs are among them where they are there and whole: they are not needed to answer.
    Raises: InvalidAdapter naming what is missing or wrong.
    """
    refuse_pickled(folder, name)
    contents = read_contents(folder, name)
    manifest = parse_manifest(contents[MANIFEST_FILE], name) if MANIFEST_FILE in contents else AdapterManifest()
    check_base(manifest, name, model_digest)
    config = parse_config(contents[CONFIG_FILE], name=name, max_rank=max_rank)
    found = _targets(contents[WEIGHTS_FILE], name, config.rank)
    info = AdapterInfo(
        name=name,
        digest=content_digest(contents),
        path=folder,
        rank=config.rank,
        targets=tuple(target for target in TARGETS if target in found),
        num_bytes=len(contents[WEIGHTS_FILE]),
        base_model=config.base_model,
        manifest=manifest,
    )
    with suppress(InvalidAdapter):
        if read_inputs(folder, manifest, name) is not None:
            contents[INPUTS_FILE] = (folder / INPUTS_FILE).read_bytes()
    return info, contents


def _targets(content: bytes, name: str, rank: int) -> set[str]:
    try:
        tensors: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise InvalidAdapter(name, f"{WEIGHTS_FILE} is not safetensors ({' '.join(str(error).split())})") from None
    halves: dict[tuple[str, str], set[str]] = {}
    for key, tensor in tensors:
        match = KEY.fullmatch(key)
        if match is None:
            targets = ", ".join(f"{target}_proj" for target in TARGETS)
            raise InvalidAdapter(name, f"{key[:200]} has no place in a model; supported targets: {targets}")
        shape, half = tensor["shape"], match[4]
        if len(shape) != 2 or shape[0 if half == "A" else 1] != rank:
            raise InvalidAdapter(name, f"{key} has shape {tuple(shape)}, which is not of rank r={rank}")
        if tensor["dtype"] not in _DTYPES:
            raise InvalidAdapter(name, f"{key} is stored as {tensor['dtype']}; supported: {', '.join(_DTYPES)}")
        halves.setdefault((match[1], match[2] or match[3]), set()).add(half)
    if not halves:
        raise InvalidAdapter(name, f"{WEIGHTS_FILE} holds no tensor")
    for (layer, target), found in halves.items():
        if len(found) != 2:
            raise InvalidAdapter(name, f"layer {layer} has only lora_{'/'.join(found)} of {target}_proj")
    return {target for _, target in halves}
