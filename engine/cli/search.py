"""`switchyard search`: passages with their scores."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from engine.cli.client import Client, client_options, print_json


@click.command()
@click.argument("query")
@click.option("--collection", help="Collection to search; default: the server's.")
@click.option("--mode", type=click.Choice(["hybrid", "dense", "lexical"]), help="Default: the server's.")
@click.option("--filter", "filter_json", help="Only documents whose metadata match, as JSON.")
@click.option("--k", type=click.IntRange(1, 100), default=5, show_default=True, help="Passages to return.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def search(
    query: str,
    collection: str | None,
    mode: str | None,
    filter_json: str | None,
    k: int,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Print the passages nearest to QUERY, best first.

    \b
    Example:
      switchyard search "restore a deleted volume" --k 3
      switchyard search "restore a deleted volume" --filter '{"product": "volumes"}'
    """
    body: dict[str, Any] = {"query": query, "k": k}
    if collection:
        body["collection"] = collection
    if mode:
        body["mode"] = mode
    if filter_json is not None:
        try:
            body["filter"] = json.loads(filter_json)
        except ValueError as error:
            raise click.BadParameter(f'is not JSON ({error}); example: \'{{"product": "volumes"}}\'') from None
    found = Client(url, api_key).call("POST", "/v1/search", json=body)
    if as_json:
        print_json(found)
        return
    console = Console(highlight=False, soft_wrap=True)
    for rank, hit in enumerate(found["results"][0], start=1):
        console.print(f"[bold]{rank}. {hit['score']:.3f}[/bold]  ", end="")
        console.print(f"{hit['title'] or hit['document']}  ({hit['document']})", markup=False)
        text = " ".join(hit["text"].split())
        console.print("   " + (text if len(text) <= 200 else text[:197] + "..."), markup=False, style="dim")
    timings = ", ".join(f"{name} {value:.1f}" for name, value in found["timings_ms"].items())
    console.print(f"[dim]index version {found['version']}, {timings} ms[/dim]")
