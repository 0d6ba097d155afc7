"""`switchyard search`: passages with their scores."""

from __future__ import annotations

import click
from rich.console import Console

from engine.cli.client import Client, client_options, print_json


@click.command()
@click.argument("query")
@click.option("--collection", help="Collection to search; default: the server's.")
@click.option("--mode", type=click.Choice(["dense", "hybrid", "lexical"]), default="dense", show_default=True)
@click.option("--k", type=click.IntRange(1, 100), default=5, show_default=True, help="Passages to return.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def search(query: str, collection: str | None, mode: str, k: int, as_json: bool, url: str, api_key: str | None) -> None:
    """Print the passages nearest to QUERY, best first.

    \b
    Example:
      switchyard search "restore a deleted volume" --k 3
    """
    body = {"query": query, "mode": mode, "k": k}
    if collection:
        body["collection"] = collection
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
