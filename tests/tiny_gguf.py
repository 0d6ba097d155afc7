"""A Llama of two layers as a GGUF file, with random weights: small enough for every test run."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as TensorType
from transformers.convert_slow_tokenizer import bytes_to_unicode

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 96, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["1 2", "3 4", "12 34", "h e", "Ġ he"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
TOKENS = SPECIALS + list(bytes_to_unicode().values()) + [merge.replace(" ", "") for merge in MERGES]


def write_tiny_gguf(
    path: Path, *, architecture: str = "llama", pre: str = "smollm", without: str = "", extra: str = ""
) -> Path:
    """Write the file; `without` names a tensor to leave out, `extra` one to add."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, (shape, kind) in _tensors().items():
        if name != without:
            _add(writer, name, shape, kind)
    if extra:
        _add(writer, extra, (HIDDEN,), TensorType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors() -> dict[str, tuple[tuple[int, ...], TensorType]]:
    kv = HIDDEN // HEADS * KV_HEADS
    tensors = {
        "token_embd.weight": ((len(TOKENS), HIDDEN), TensorType.Q8_0),
        "output_norm.weight": ((HIDDEN,), TensorType.F32),
    }
    for layer in range(LAYERS):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": ((HIDDEN,), TensorType.F32),
            f"blk.{layer}.attn_q.weight": ((HIDDEN, HIDDEN), TensorType.Q4_1),
            f"blk.{layer}.attn_k.weight": ((kv, HIDDEN), TensorType.Q4_1),
            f"blk.{layer}.attn_v.weight": ((kv, HIDDEN), TensorType.Q8_0),
            f"blk.{layer}.attn_output.weight": ((HIDDEN, HIDDEN), TensorType.Q4_1),
            f"blk.{layer}.ffn_norm.weight": ((HIDDEN,), TensorType.F32),
            f"blk.{layer}.ffn_gate.weight": ((FFN, HIDDEN), TensorType.Q4_1),
            f"blk.{layer}.ffn_up.weight": ((FFN, HIDDEN), TensorType.F16),
            f"blk.{layer}.ffn_down.weight": ((HIDDEN, FFN), TensorType.Q4_1),
        }
    return tensors


def _add(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: TensorType) -> None:
    random = np.random.default_rng(sum(name.encode()))
    values = random.normal(0.0, 0.2, shape).astype(np.float32)
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
