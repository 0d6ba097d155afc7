"""An adapter's folder as PEFT writes it: read once, checked whole, and named by the digest of what was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from engine.errors import InvalidAdapter
from engine.generation.adapters.config_file import CONFIG_FILE, LoraConfig, parse_config
from engine.generation.adapters.content import MAX_JSON_BYTES, WEIGHTS_FILE, content_digest, read_contents
from engine.generation.adapters.host import AdapterInfo
from engine.generation.adapters.inspection import KEY, TARGETS, refuse_pickled
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest, check_base, parse_manifest
from engine.generation.decoder.spec import DecoderSpec

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """`pairs[layer, target]` are A [r, in] and B [out, r], B times the scaling, in the decoder's dtype on the CPU."""

    digest: str
    rank: int
    pairs: Mapping[tuple[int, str], tuple[Tensor, Tensor]]


def target_shapes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every linear that an adapter may change."""
    heads, kv_heads = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    sizes = ((heads, hidden), (kv_heads, hidden), (kv_heads, hidden), (hidden, heads))
    return dict(zip(TARGETS, (*sizes, (inner, hidden), (inner, hidden), (hidden, inner)), strict=True))


def read_adapter(
    folder: Path, name: str, spec: DecoderSpec, *, model_digest: str, max_rank: int, dtype: torch.dtype
) -> tuple[AdapterInfo, AdapterWeights]:
    """Read and check the adapter in `folder` for the decoder of `spec`.

    Only adapter_config.json, adapter_model.safetensors and, where there is one, switchyard.json are read, each once,
    so that the digest is that of the weights. Raises: InvalidAdapter naming what is missing or wrong.
    """
    refuse_pickled(folder, name)
    shapes = target_shapes(spec)
    # A file larger than every target at the highest rank allowed, in float32, is no adapter of this model.
    most = spec.num_layers * max_rank * 4 * sum(map(sum, shapes.values())) + MAX_JSON_BYTES
    contents = read_contents(folder, name, most)
    manifest = parse_manifest(contents[MANIFEST_FILE], name) if MANIFEST_FILE in contents else AdapterManifest()
    check_base(manifest, name, model_digest)
    config = parse_config(contents[CONFIG_FILE], name=name, max_rank=max_rank)
    pairs = _pairs(contents[WEIGHTS_FILE], name, config, shapes, spec.num_layers, dtype)
    info = AdapterInfo(
        name=name,
        digest=content_digest(contents),
        path=folder,
        rank=config.rank,
        targets=tuple(target for target in TARGETS if any(key[1] == target for key in pairs)),
        num_bytes=len(contents[WEIGHTS_FILE]),
        base_model=config.base_model,
        manifest=manifest,
    )
    return info, AdapterWeights(info.digest, config.rank, pairs)


def _pairs(
    content: bytes, name: str, config: LoraConfig, shapes: dict[str, tuple[int, int]], layers: int, dtype: torch.dtype
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapter(name, f"{WEIGHTS_FILE} is not safetensors ({' '.join(str(error).split())})") from None
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None or int(match[1]) >= layers:
            raise InvalidAdapter(
                name,
                f"{key} has no place in this model of {layers} layers; supported targets: "
                + ", ".join(f"{target}_proj" for target in TARGETS),
            )
        target = match[2] or match[3]
        outputs, inputs = shapes[target]
        expected = (config.rank, inputs) if match[4] == "A" else (outputs, config.rank)
        if tuple(tensor.shape) != expected:
            raise InvalidAdapter(
                name, f"{key} has shape {tuple(tensor.shape)}, the generator and r ask for {expected}: another base?"
            )
        if tensor.dtype not in _DTYPES:
            raise InvalidAdapter(name, f"{key} is stored as {tensor.dtype}; supported: float32, bfloat16, float16")
        halves.setdefault((int(match[1]), target), {})[match[4]] = tensor
    if not halves:
        raise InvalidAdapter(name, f"{WEIGHTS_FILE} holds no tensor")
    pairs = {}
    for (layer, target), half in halves.items():
        if len(half) != 2:
            raise InvalidAdapter(name, f"layer {layer} has only lora_{'/'.join(half)} of {target}_proj")
        a, b = half["A"].to(dtype), (half["B"].float() * config.scaling).to(dtype)
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise InvalidAdapter(name, f"layer {layer}, {target}_proj: a weight is not finite in {dtype}")
        pairs[layer, target] = (a, b)
    return pairs
