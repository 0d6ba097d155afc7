"""What `switchyard tune` needs models for besides training: to count tokens, and to embed texts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from engine.config import EngineConfig
from engine.errors import ModelSourceError
from engine.models import resolve_model
from engine.retrieval.encoding.protocol import EncoderLike
from engine.tuning.guard.counts import CountTokens


def find_counter(model: str | None) -> CountTokens | None:
    """The model's; None, said on standard error, where the default model cannot be had: the rest needs none."""
    try:
        path = resolve_model(model or EngineConfig().generator.model, kind="generator", show_progress=True).path
    except ModelSourceError as error:
        if model is not None:
            raise
        click.echo(f"tokens are not counted: {error}", err=True)
        return None
    return load_counter(path)


def load_counter(path: Path) -> CountTokens:
    """By the tokenizer of the model in `path`. Raises: ModelSourceError where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    # The library raises nothing more specific for a file that it cannot read.
    except Exception as error:
        why = " ".join(str(error).split())
        raise ModelSourceError(
            f"{path}: has no tokenizer.json that can be read ({why}). Name another --model."
        ) from None
    return lambda texts: [
        len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def find_encoder(*, is_needed: bool) -> EncoderLike | None:
    """The default one; None, said on standard error, where it cannot be had and need not be."""
    try:
        return load_encoder()
    except ModelSourceError as error:
        if is_needed:
            raise
        click.echo(
            f"the adapter will carry no training inputs, and not be compared with a model on embeddings: {error}",
            err=True,
        )
        return None


def load_encoder() -> EncoderLike:
    """The default one. Raises: ModelSourceError where it cannot be had."""
    from engine.retrieval.encoding.encoder import Encoder  # torch takes seconds to import

    settings = EngineConfig().retriever
    path = resolve_model(settings.model, kind="encoder", show_progress=True).path
    return Encoder(path, threads=settings.threads, batch_tokens=settings.forward_tokens("cpu"))


def torch_device() -> Literal["cuda", "cpu"]:
    """Where to train."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
