"""What a PEFT folder's adapter_config.json says, as far as the engine honours it. The rest is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
# These leave the forward pass as it is.
_HARMLESS = frozenset(
    (
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern"),
        *("megatron_core", "qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying"),
    )
)
_READ = frozenset(("peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"))
# Others begin by changing the base model's weights, which the adapter's file does not hold.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Rank, and the factor of every product: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732)."""

    rank: int
    scaling: float
    base_model: str


def parse_config(text: bytes, *, name: str, max_rank: int) -> LoraConfig:
    """Read adapter_config.json. Raises: InvalidAdapter naming the entry that is missing or not supported."""
    try:
        raw: Any = json.loads(text)
    except ValueError as error:
        raise InvalidAdapter(name, f"{CONFIG_FILE} is not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise InvalidAdapter(name, f"{CONFIG_FILE} is not an object")
    _refuse_unsupported(raw, name)
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise InvalidAdapter(name, f"its rank r={rank!r} must be from 1 to {max_rank} (generator.max_adapter_rank)")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise InvalidAdapter(name, f"lora_alpha={alpha!r} must be a finite number")
    scaling = alpha / math.sqrt(rank) if raw.get("use_rslora") is True else alpha / rank
    return LoraConfig(rank, scaling, str(raw.get("base_model_name_or_path") or ""))


def _refuse_unsupported(raw: dict[str, Any], name: str) -> None:
    if raw.get("peft_type") != "LORA":
        raise InvalidAdapter(name, f"peft_type={raw.get('peft_type')!r} is not supported; supported: 'LORA'")
    if raw.get("bias", "none") != "none":
        raise InvalidAdapter(name, f"bias={raw['bias']!r} is not supported; train with bias='none'")
    if raw.get("init_lora_weights", True) not in _INITIALISATIONS:
        raise InvalidAdapter(
            name,
            f"init_lora_weights={raw['init_lora_weights']!r} changes the base model's weights; convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    if raw.get("use_rslora", False) not in (True, False):
        raise InvalidAdapter(name, f"use_rslora={raw['use_rslora']!r} must be true or false")
    for key, value in raw.items():
        # Whatever else is on changes the forward pass, in ways that later versions of PEFT may invent.
        if key not in _HARMLESS and key not in _READ and value not in (None, False, [], {}, ""):
            raise InvalidAdapter(name, f"{key}={value!r} is not supported; train the adapter without it")
