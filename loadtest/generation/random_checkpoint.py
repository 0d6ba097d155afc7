"""Checkpoints of well-known shapes with random weights: speed depends on shapes, and no hub is needed to measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# As the models' own config.json files have it.
SHAPES: dict[str, dict[str, Any]] = {
    "Mistral-7B": {
        **{"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        **{"max_position_embeddings": 32768, "sliding_window": 4096, "tie_word_embeddings": False},
    },
    "Llama-3.1-8B": {
        **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        **{"max_position_embeddings": 131072, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": False},
    },
    "Qwen3-0.6B": {
        **{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072},
        **{"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        **{"max_position_embeddings": 40960, "tie_word_embeddings": True},
    },
    "tiny": {
        **{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
        **{"max_position_embeddings": 16384, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": False},
    },
}
# Wide enough that the best two logits are far apart, so that equal tokens mean equal computations.
_STD = 0.05


def write_checkpoint(folder: Path, shape: str, *, num_layers: int | None = None, device: str = "cpu") -> Path:
    """Write one of SHAPES in bfloat16, with `num_layers` instead of its own. `device` draws the numbers, seed 0.

    A file for each layer, so that memory holds one at a time. Returns `folder`. Raises: KeyError for another shape.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = SHAPES[shape] | ({} if num_layers is None else {"num_hidden_layers": num_layers})
    config = AutoConfig.for_model(**values, bos_token_id=None, eos_token_id=1, pad_token_id=0, dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if values["tie_word_embeddings"]:
        names.pop("lm_head.weight", None)
    files: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        files.setdefault(f"model-{parts[2] if parts[1] == 'layers' else 'ends'}.safetensors", []).append(name)
    random = torch.Generator(device).manual_seed(0)
    index = {}
    for file, inside in files.items():
        tensors = {}
        for name in inside:
            drawn = torch.empty(names[name], dtype=torch.bfloat16, device=device)
            tensors[name] = (
                drawn.fill_(1.0) if name.endswith("norm.weight") else drawn.normal_(0, _STD, generator=random)
            ).cpu()
            index[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    _tokenizer(values["vocab_size"]).save_pretrained(folder)
    return folder


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One word for each id."""
    words = {f"w{index}": index for index in range(vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w0", chat_template=template)
