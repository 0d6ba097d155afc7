"""Convert a GGUF file of the Llama architecture into a folder that transformers and our decoder read.

    model.safetensors        every weight, dequantised to float32, under its Hugging Face name
    quantised.safetensors    the codes and scales of the Q4_1 and Q8_0 tensors, exactly as the file has them
    config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja

quantised.safetensors, for a weight NAME of shape [rows, cols] (as in model.safetensors) in blocks of 32 columns:

    Q4_1  NAME.codes   uint8   [rows, cols/2]   byte 16*b + j of a row: low nibble is column 32*b + j,
                                                high nibble is column 32*b + 16 + j (0 <= j < 16)
          NAME.scales  float16 [rows, cols/32]  weight = scale * code + min, code in 0..15
          NAME.mins    float16 [rows, cols/32]
    Q8_0  NAME.codes   int8    [rows, cols]     weight = scale * code
          NAME.scales  float16 [rows, cols/32]

Products and sums are in float32, which gives the bits of model.safetensors. Tensors of other types have no entry.
llama.cpp stores the rows of q and k in its own rotary order; in both files they are back in Hugging Face order.
Source of the block layouts: ggml's ggml-quants.c; of the row order: llama.cpp's convert_hf_to_gguf.py (permute).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as TensorType

from engine.errors import ModelSourceError

GGUF_ARCHITECTURES = ("llama",)
BLOCK = 32

Array = npt.NDArray[Any]

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# `tokenizer.ggml.pre` values whose splitting is known; any other would tokenise wrongly without a sign.
_PRE_TOKENIZERS = ("smollm", "default", "gpt-2", "llama-bpe", "llama3", "llama-v3")
_SAFETENSORS_DTYPE = {"float32": "F32", "float16": "F16", "uint8": "U8", "int8": "I8"}


@dataclass(frozen=True, slots=True)
class _Output:
    """One tensor of a file being written; `read` makes its content when its turn comes, so one is in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: partial[Array]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def convert_gguf(source: Path, target: Path) -> None:
    """Write the model of the GGUF file `source` into the folder `target`, which is created.

    Raises: ModelSourceError when the file is damaged, of another architecture, or uses what LlamaConfig cannot say.
    """
    reader = _open(source)
    config = _llama_config(reader, source)
    heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    tensors = _hf_tensors(reader, source, config["num_hidden_layers"])
    weights, codes = [], []
    for name, tensor in tensors.items():
        num_heads = heads.get(tensor.name.split(".", 2)[-1], 0)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        weights.append(_Output(name, "float32", shape, partial(_read_weight, tensor, num_heads)))
        codes += _code_outputs(name, tensor, num_heads, shape)
    target.mkdir(parents=True, exist_ok=True)
    _write_safetensors(target / "model.safetensors", weights)
    if codes:
        _write_safetensors(target / "quantised.safetensors", codes)
    _write_json(target / "config.json", config)
    token_ids = {key: value for key, value in config.items() if key.endswith("_token_id") and key != "unk_token_id"}
    _write_json(target / "generation_config.json", token_ids)
    _write_tokenizer(reader, source, target)


def converted_bytes(source: Path) -> int:
    """Bytes that `convert_gguf` writes, about: float32 weights, codes and a tokenizer."""
    tensors = _open(source).tensors
    return sum(4 * int(tensor.n_elements) + int(tensor.n_bytes) for tensor in tensors) + 8_000_000


def dequantise_q4_1(codes: Array, scales: Array, mins: Array) -> npt.NDArray[np.float32]:
    """Weights of a Q4_1 tensor: codes uint8 [rows, cols/2], scales and mins float16 [rows, cols/32] -> [rows, cols]."""
    rows = codes.shape[0]
    pairs = codes.reshape(rows, -1, 1, BLOCK // 2)
    values = np.concatenate([pairs & 0x0F, pairs >> 4], axis=2).reshape(rows, -1, BLOCK).astype(np.float32)
    weights = scales.astype(np.float32)[:, :, None] * values + mins.astype(np.float32)[:, :, None]
    return weights.reshape(rows, -1)


def dequantise_q8_0(codes: Array, scales: Array) -> npt.NDArray[np.float32]:
    """Weights of a Q8_0 tensor: codes int8 [rows, cols], scales float16 [rows, cols/32] -> float32 [rows, cols]."""
    rows = codes.shape[0]
    values = codes.reshape(rows, -1, BLOCK).astype(np.float32)
    return (values * scales.astype(np.float32)[:, :, None]).reshape(rows, -1)


def _open(source: Path) -> Any:
    try:
        return gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise ModelSourceError(
            f"{source.name} cannot be read as GGUF ({error}); it may be cut short. Remove it and fetch it again."
        ) from None


def _field(reader: Any, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _llama_config(reader: Any, source: Path) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM."""
    architecture = _field(reader, "general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        raise ModelSourceError(
            f"{source.name} has the architecture {architecture!r}; GGUF files are read for: "
            f"{', '.join(GGUF_ARCHITECTURES)}. Name a safetensors source (hf:REPO or a folder) of this model instead."
        )

    def need(key: str) -> Any:
        value = _field(reader, f"llama.{key}")
        if value is None:
            raise ModelSourceError(f"{source.name} lacks the field llama.{key}, so its model cannot be built.")
        return value

    hidden, num_heads = need("embedding_length"), need("attention.head_count")
    head_dim = _field(reader, "llama.attention.key_length", hidden // num_heads)
    rotary_dim = _field(reader, "llama.rope.dimension_count", head_dim)
    scaling = _field(reader, "llama.rope.scaling.type", "none")
    if rotary_dim != head_dim or scaling != "none":
        raise ModelSourceError(
            f"{source.name} uses rope.scaling.type={scaling!r} with {rotary_dim} of {head_dim} dimensions rotated; "
            "only unscaled, full rotary embedding is read from GGUF. Name a safetensors source of this model."
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": need("feed_forward_length"),
        "max_position_embeddings": need("context_length"),
        "mlp_bias": False,
        "num_attention_heads": num_heads,
        "num_hidden_layers": need("block_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv", num_heads),
        "rms_norm_eps": need("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": _field(reader, "llama.rope.freq_base", 10_000.0), "rope_type": "default"},
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "use_cache": True,
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        **_token_ids(reader),
    }


def _token_ids(reader: Any) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {f"{ours}_token_id": _field(reader, f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in keys.items()}
    return {name: int(token) for name, token in found.items() if token is not None}


def _hf_tensors(reader: Any, source: Path, num_layers: int) -> dict[str, Any]:
    """Tensors by Hugging Face name, in a fixed order; exactly those of a Llama, or an error that names the odd one."""
    names = dict(_OUTSIDE)
    for layer in range(num_layers):
        names |= {f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for ours, theirs in _IN_LAYER.items()}
    found = {tensor.name: tensor for tensor in reader.tensors}
    unknown, missing = found.keys() - names.keys(), names.keys() - found.keys() - {"output.weight"}
    if unknown or missing:
        raise ModelSourceError(
            f"{source.name} is not a plain Llama: unexpected tensors {sorted(unknown)[:3]}, missing tensors "
            f"{sorted(missing)[:3]}. Biases, experts and rope factors are not read from GGUF; "
            "name a safetensors source of this model."
        )
    return {theirs: found[ours] for ours, theirs in names.items() if ours in found}


def _code_outputs(name: str, tensor: Any, num_heads: int, shape: tuple[int, ...]) -> list[_Output]:
    if tensor.tensor_type not in (TensorType.Q4_1, TensorType.Q8_0):
        return []
    rows, cols = shape
    is_q4 = tensor.tensor_type == TensorType.Q4_1
    parts = [("codes", "uint8", cols // 2) if is_q4 else ("codes", "int8", cols), ("scales", "float16", cols // BLOCK)]
    if is_q4:
        parts.append(("mins", "float16", cols // BLOCK))
    return [
        _Output(f"{name}.{part}", dtype, (rows, width), partial(_read_part, tensor, num_heads, part))
        for part, dtype, width in parts
    ]


def _read_part(tensor: Any, num_heads: int, part: str) -> Array:
    return _read_codes(tensor, num_heads)[part]


def _read_codes(tensor: Any, num_heads: int) -> dict[str, Array]:
    """Codes, scales and mins of a Q4_1 or Q8_0 tensor, rows in Hugging Face order."""
    rows = tensor.data.shape[0]
    is_q4 = tensor.tensor_type == TensorType.Q4_1
    blocks = tensor.data.reshape(rows, -1, 20 if is_q4 else 34)  # [rows, cols/32, bytes of a block]
    halves = ("scales", "mins") if is_q4 else ("scales",)
    parts: dict[str, Array] = {}
    for index, part in enumerate(halves):
        raw = np.ascontiguousarray(blocks[:, :, 2 * index : 2 * index + 2])
        parts[part] = raw.view("<f2")[:, :, 0].astype(np.float16)
    codes = np.ascontiguousarray(blocks[:, :, 2 * len(halves) :]).reshape(rows, -1)
    parts["codes"] = codes if is_q4 else codes.view(np.int8)
    return {part: _hf_row_order(values, num_heads) for part, values in parts.items()}


def _read_weight(tensor: Any, num_heads: int) -> Array:
    if tensor.tensor_type == TensorType.Q4_1:
        return dequantise_q4_1(**_read_codes(tensor, num_heads))
    if tensor.tensor_type == TensorType.Q8_0:
        return dequantise_q8_0(**_read_codes(tensor, num_heads))
    try:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelSourceError(
            f"tensor {tensor.name} has the type {tensor.tensor_type.name}, which cannot be read ({error}). "
            "Use a file quantised as Q4_1, Q8_0, F16 or F32."
        ) from None
    return _hf_row_order(np.asarray(weights, dtype=np.float32), num_heads)


def _hf_row_order(values: Array, num_heads: int) -> Array:
    """Undo llama.cpp's row order of q and k: [heads, dim/2, 2] back to [heads, 2, dim/2]; 0 heads: unchanged."""
    if num_heads == 0:
        return values
    split = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def _write_safetensors(path: Path, outputs: Iterable[_Output]) -> None:
    """Write tensors one after the other; safetensors' own writer wants all of them in memory at once."""
    # Wider types first, as safetensors itself does, so that every tensor is aligned to its type.
    ordered = sorted(outputs, key=lambda output: (-np.dtype(output.dtype).itemsize, output.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in ordered:
        span = [offset, offset + output.num_bytes]
        header[output.name] = {
            "dtype": _SAFETENSORS_DTYPE[output.dtype],
            "shape": list(output.shape),
            "data_offsets": span,
        }
        offset = span[1]
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    with path.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little"))
        file.write(packed)
        for output in ordered:
            values = output.read()
            if values.shape != output.shape:
                raise ModelSourceError(f"{output.name} has the shape {values.shape}, expected {output.shape}.")
            file.write(np.ascontiguousarray(values, dtype=output.dtype).data)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(reader: Any, source: Path, target: Path) -> None:
    """tokenizer.json and its settings: transformers' reading of the file, with the pre-tokenizer it does not know."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    kind, pre = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre", "default")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and pre not in _PRE_TOKENIZERS):
        raise ModelSourceError(
            f"{source.name} has the tokenizer {kind!r} with tokenizer.ggml.pre={pre!r}; read are llama, and gpt2 with "
            f"{', '.join(_PRE_TOKENIZERS)}. Name a safetensors source of this model."
        )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.save_pretrained(target)
