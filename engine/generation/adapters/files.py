"""An adapter's folder as PEFT writes it: read once, checked whole, and named by the digest of what was read."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from engine.errors import InvalidAdapter
from engine.generation.adapters.config_file import CONFIG_FILE, LoraConfig, parse_config
from engine.generation.decoder.spec import DecoderSpec

WEIGHTS_FILE = "adapter_model.safetensors"
OWN_FILE = "switchyard.json"
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
_MAX_JSON_BYTES = 1 << 20
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_KEY = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj\.lora_(A|B)\.weight"
)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A checked adapter. `digest` is the SHA-256 of its files' contents, `targets` are of TARGETS."""

    name: str
    digest: str
    path: Path
    rank: int
    targets: tuple[str, ...]
    num_bytes: int
    base_model: str


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
    if not folder.is_dir():
        raise InvalidAdapter(name, "its folder is not there")
    if not (folder / WEIGHTS_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise InvalidAdapter(name, "it holds adapter_model.bin, which may run code; save it with safe_serialization")
    shapes = target_shapes(spec)
    # A file larger than every target at the highest rank allowed, in float32, is no adapter of this model.
    most = spec.num_layers * max_rank * 4 * sum(map(sum, shapes.values())) + _MAX_JSON_BYTES
    config_bytes = _read(folder, CONFIG_FILE, name, _MAX_JSON_BYTES)
    weights_bytes = _read(folder, WEIGHTS_FILE, name, most)
    _check_base(folder, name, model_digest)
    config = parse_config(config_bytes, name=name, max_rank=max_rank)
    pairs = _pairs(weights_bytes, name, config, shapes, spec.num_layers, dtype)
    digest = sha256()
    for file, content in ((CONFIG_FILE, config_bytes), (WEIGHTS_FILE, weights_bytes)):
        digest.update(f"{file} {len(content)}\n".encode() + content)
    targets = tuple(target for target in TARGETS if any(key[1] == target for key in pairs))
    info = AdapterInfo(
        name, digest.hexdigest(), folder, config.rank, targets, len(weights_bytes), base_model=config.base_model
    )
    return info, AdapterWeights(info.digest, config.rank, pairs)


def _read(folder: Path, file: str, name: str, max_bytes: int) -> bytes:
    """The content of a regular file that lies in the folder itself, links resolved."""
    path = folder / file
    try:
        if path.resolve(strict=True).parent != folder.resolve(strict=True):
            raise InvalidAdapter(name, f"{file} is a link out of its folder; put the file itself there")
        # Opened without waiting: a pipe in its place must not hang the reader.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidAdapter(name, f"{file} is no regular file")
            content = opened.read(max_bytes + 1)
    except OSError as error:
        raise InvalidAdapter(name, f"{file} cannot be read ({error.strerror})") from None
    if len(content) > max_bytes:
        raise InvalidAdapter(
            name, f"{file} has more than {max_bytes} bytes, which no adapter of this model and rank needs"
        )
    return content


def _check_base(folder: Path, name: str, model_digest: str) -> None:
    if not (folder / OWN_FILE).exists():
        return
    try:
        own = json.loads(_read(folder, OWN_FILE, name, _MAX_JSON_BYTES))
        base = own.get("base_digest")
    except (ValueError, AttributeError) as error:
        raise InvalidAdapter(name, f"{OWN_FILE} is not a JSON object ({error})") from None
    if base is not None and model_digest and base != model_digest:
        raise InvalidAdapter(
            name,
            f"it was trained on the weights {str(base)[:12]}..., the generator serves {model_digest[:12]}...; "
            "train it anew, or name its base model with generator.model",
        )


def _pairs(
    content: bytes, name: str, config: LoraConfig, shapes: dict[str, tuple[int, int]], layers: int, dtype: torch.dtype
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapter(name, f"{WEIGHTS_FILE} is not safetensors ({' '.join(str(error).split())})") from None
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
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
