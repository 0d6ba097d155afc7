"""What the settings files of a sentence-transformers folder say about an encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelSourceError

_POOLING_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class EncoderFolder:
    """`files` are all that decide a vector, in a fixed order. Prompts are empty where the model has none."""

    name: str
    pooling: str
    normalise: bool
    max_tokens: int
    query_prompt: str
    passage_prompt: str
    files: tuple[Path, ...]


def read_encoder_folder(path: Path) -> EncoderFolder:
    """Read modules, pooling, length and prompts of a folder in the layout of sentence-transformers.

    Without modules.json the folder is a plain transformers model: mean pooling, not normalised, as
    sentence-transformers treats it.
    Raises: ModelSourceError, naming the file or module that is missing or not supported.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelSourceError(f"{path}: has no {name}, so it is no encoder. Set retriever.model to another.")
    weights = tuple(sorted(path.glob("*.safetensors")))
    if not weights:
        raise ModelSourceError(f"{path}: has no *.safetensors file; weights in other formats are not read.")
    config = read_json(path / "config.json")
    settings = read_json(path / "sentence_bert_config.json")
    if settings.get("do_lower_case"):
        raise ModelSourceError(f"{path}: sentence_bert_config.json asks for do_lower_case, which is not supported.")
    limits = (settings.get("max_seq_length"), config.get("max_position_embeddings"))
    max_tokens = min((limit for limit in limits if isinstance(limit, int)), default=512)
    pooling, normalise, pooling_file = _modules(path)
    prompts_file = path / "config_sentence_transformers.json"
    prompts = read_json(prompts_file).get("prompts") or {}
    named = [path / name for name in ("config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json")]
    return EncoderFolder(
        name=config.get("_name_or_path") or path.name,
        pooling=pooling,
        normalise=normalise,
        max_tokens=max_tokens,
        query_prompt=prompts.get("query") or "",
        passage_prompt=next((prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), ""),
        files=tuple(file for file in (*named, pooling_file, prompts_file, *weights) if file.is_file()),
    )


def _modules(path: Path) -> tuple[str, bool, Path]:
    """Pooling, whether vectors are normalised, and the pooling's file."""
    pooling, normalise, pooling_file = "mean", False, path / "1_Pooling" / "config.json"
    modules = read_json(path / "modules.json")
    for module in modules.get("", []):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling_file = path / str(module.get("path", "")) / "config.json"
            pooling = _pooling(pooling_file)
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise ModelSourceError(
                f"{path}: modules.json names {kind!r}; supported: Transformer, Pooling, Normalize. "
                "Set retriever.model to another encoder."
            )
    return pooling, normalise, pooling_file


def _pooling(file: Path) -> str:
    config = read_json(file)
    modes = [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on is True]
    named = config.get("pooling_mode")
    pooling = str(named or (_POOLING_FLAGS.get(modes[0]) if len(modes) == 1 else None))
    if pooling not in _POOLING_FLAGS.values():
        raise ModelSourceError(
            f"{file}: pooling {named or ', '.join(modes) or 'none'} is not supported; supported: mean, cls. "
            "Set retriever.model to another encoder."
        )
    return pooling


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is no file; a list (modules.json) comes under the key ""."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{file}: cannot be read as JSON ({error}).") from None
    return raw if isinstance(raw, dict) else {"": raw}
