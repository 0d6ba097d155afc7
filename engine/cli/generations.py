"""`switchyard generations`: another encoder or other chunks for a collection that is served meanwhile."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.cli.client import Client, client_options, print_json
from engine.cli.jobs import follow_job
from engine.errors import SwitchyardError

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
background_option = click.option("--background", is_flag=True, help="Do not wait: print the job that counts it.")


@click.group()
def generations() -> None:
    """Change the encoder or the chunks of a collection while it is served.

    A generation is all chunks and vectors of a collection, made by one encoder in one size. A new one is built beside
    the one that is searched, compared with it on the judged queries (`switchyard judge`), and takes its place at once.
    The old one is kept, to go back to.

    \b
    Example:
      switchyard generations build default
      switchyard generations list default
    """


@generations.command("list")
@click.argument("collection")
@json_option
@client_options
def list_(collection: str, as_json: bool, url: str, api_key: str | None) -> None:
    """List the generations of COLLECTION that are kept.

    \b
    Example:
      switchyard generations list default
    """
    found = Client(url, api_key).call("GET", _path(collection))
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="bold")
    for name in ("generation", "state", "encoder", "chunk tokens", "overlap", "created"):
        table.add_column(name, no_wrap=True)
    for row in found["generations"]:
        sizes = (str(row[name]) for name in ("chunk_tokens", "chunk_overlap_tokens"))
        created = datetime.fromtimestamp(row["created_at"]).strftime("%Y-%m-%d %H:%M:%S")
        encoder = Text(row["encoder"] or row["model"] or "")
        table.add_row(str(row["generation"]), row["task"] or row["state"], encoder, *sizes, created)
    _console().print(table)


@generations.command()
@click.argument("collection")
@click.option("--model", help="Encoder: hf:REPO[@REV], pypi:PKG==VER or a folder of the server; default: its setting.")
@click.option("--chunk-tokens", type=int, help="Most encoder tokens in a chunk; default: the server's setting.")
@click.option("--chunk-overlap-tokens", type=int, help="Tokens that neighbours share; default: the server's setting.")
@click.option(
    "--switch",
    type=click.Choice(["if-not-worse", "always", "never"]),
    default="if-not-worse",
    show_default=True,
    help="Whether it is put in place once it is built.",
)
@background_option
@json_option
@client_options
def build(
    collection: str,
    model: str | None,
    chunk_tokens: int | None,
    chunk_overlap_tokens: int | None,
    switch: str,
    background: bool,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Build another generation of COLLECTION and, unless it answers worse, put it in place.

    Without options it is made as the server's settings say: change retriever.model, start the server, build. Searches
    and writes go on meanwhile. Without judged queries nothing says whether it is worse, and it is only built.

    \b
    Example:
      switchyard generations build default --model hf:BAAI/bge-small-en-v1.5
      switchyard generations build default --chunk-tokens 120 --switch always
    """
    asked = {
        "model": model,
        "chunk_tokens": chunk_tokens,
        "chunk_overlap_tokens": chunk_overlap_tokens,
        "switch": switch,
    }
    client = Client(url, api_key)
    job = client.call("POST", _path(collection), json={key: value for key, value in asked.items() if value is not None})
    _show_end(client, collection, job, background, as_json)


@generations.command()
@click.argument("collection")
@click.argument("number", type=int)
@background_option
@json_option
@client_options
def use(collection: str, number: int, background: bool, as_json: bool, url: str, api_key: str | None) -> None:
    """Put generation NUMBER of COLLECTION in place, with all that was written since it was searched last.

    \b
    Example:
      switchyard generations use default 1
    """
    client = Client(url, api_key)
    _show_end(client, collection, client.call("POST", f"{_path(collection)}/{number}/use"), background, as_json)


@generations.command()
@click.argument("collection")
@click.argument("number", type=int)
@json_option
@client_options
def drop(collection: str, number: int, as_json: bool, url: str, api_key: str | None) -> None:
    """Remove generation NUMBER of COLLECTION, with its chunks and vectors; not the one that is searched.

    \b
    Example:
      switchyard generations drop default 1
    """
    gone = Client(url, api_key).call("DELETE", f"{_path(collection)}/{number}")
    print_json(gone) if as_json else click.echo(f"generation {number} of {collection} is dropped")


def _path(collection: str) -> str:
    return f"/v1/collections/{quote(collection, safe='')}/generations"


def _show_end(client: Client, collection: str, job: dict[str, Any], background: bool, as_json: bool) -> None:
    """Wait for the job unless that is not wanted, and say what came of it."""
    if background:
        print_json(job) if as_json else click.echo(f"job {job['id']}; follow it: switchyard jobs {job['id']} --follow")
        return
    job = follow_job(client, f"/v1/jobs/{job['id']}", job)
    listed = client.call("GET", _path(collection))["generations"]
    one = next((row for row in listed if row["job"] == job["id"]), None)
    if as_json:
        print_json({"job": job, "generation": one})
    elif job["state"] == "done" and one is not None:
        _print_outcome(collection, one)
    if job["state"] != "done":
        why = job["errors"][0]["error"] if job["errors"] else f"switchyard generations list {collection}"
        raise SwitchyardError(f"generation of {collection}: the job is {job['state']}: {why}")


def _print_outcome(collection: str, one: dict[str, Any]) -> None:
    report = one["report"]
    if report is not None and report["evaluation"] is not None:
        _console().print(_evaluation_table(report["evaluation"]))
    place = "is searched from now on" if one["state"] == "current" else "is built and not put in place"
    why = f": {report['why']}" if report is not None and (one["state"] != "current" or report["is_switched"]) else ""
    click.echo(f"generation {one['generation']} of {collection} {place}{why}")


def _evaluation_table(evaluation: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("nDCG@10", no_wrap=True)
    for name in ("queries", "before", "after", "difference", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, label in (("default", "default fusion"), ("fitted", "fitted weight")):
        row = evaluation[name]
        if row is None:
            continue
        known = row["gain_low"] is not None
        interval = f"{row['gain_low']:+.3f} to {row['gain_high']:+.3f}" if known else "unknown"
        numbers = (f"{row['old']:.3f}", f"{row['new']:.3f}", f"{row['gain']:+.3f}", interval)
        table.add_row(label, str(row["num_queries"]), *numbers)
    return table


def _console() -> Console:
    # What is piped elsewhere keeps its lines whole.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)
