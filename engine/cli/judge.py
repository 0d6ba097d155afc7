"""`switchyard judge`: judged queries, to which a collection's fusion weight is fitted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from engine.cli.client import Client, ServerError, client_options, print_json
from engine.cli.judged_files import read_qrels, read_queries
from engine.errors import SwitchyardError

_LINES_PER_REQUEST = 5_000
_POLL_S = 0.2


@click.command()
@click.argument("qrels", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--queries", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Texts of the queries.")
@click.option("--collection", default="default", show_default=True, help="Collection that was judged.")
@click.option("--source", help="Put NAME/ in front of the ids of documents, as ingest does.", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def judge(
    qrels: Path, queries: Path, collection: str, source: str | None, as_json: bool, url: str, api_key: str | None
) -> None:
    """Send the judgements of QRELS, and show the weight of meaning that is fitted to them.

    QRELS holds TREC's lines (query iteration document relevance), BEIR's, or JSON lines {"query_id", "doc_id",
    "relevance"}; the file of the queries JSON lines {"id", "text"}. Relevance below 0 counts as 0.

    \b
    Example:
      switchyard judge qrels.txt --queries queries.jsonl --collection docs
    """
    lines = _lines(qrels, queries, source)
    client = Client(url, api_key)
    path = f"/v1/collections/{quote(collection, safe='')}/judgements"
    failures: list[str] = []
    for first in range(0, len(lines), _LINES_PER_REQUEST):
        body = "\n".join(lines[first : first + _LINES_PER_REQUEST]).encode()
        sent = client.call("PUT", path, content=body, headers={"Content-Type": "application/x-ndjson"})
        failures += [one["error"] for one in sent["results"] if one["status"] == "failed"]
    found = _when_fitted(client, path)
    if as_json:
        print_json({**found, "failures": failures})
    else:
        _print(found)
    if failures:
        raise SwitchyardError(f"{len(failures)} judgements were refused; the first: {failures[0]}")


def _lines(qrels: Path, queries: Path, source: str | None) -> list[str]:
    texts = read_queries(queries)
    prefix = f"{source}/" if source else ""
    lines = [
        json.dumps({"query": texts[query], "document": prefix + document, "grade": max(relevance, 0)})
        for query, grades in read_qrels(qrels).items()
        if query in texts
        for document, relevance in grades.items()
    ]
    if not lines:
        raise SwitchyardError(f"{qrels}: judges no query of {queries}; the ids of the two files must agree.")
    return lines


def _when_fitted(client: Client, path: str) -> dict[str, Any]:
    while True:
        try:
            found = client.call("GET", path)
        except ServerError as error:
            # A server that restarts begins the fit again.
            if error.status != 503:
                raise
        else:
            if not found["is_fitting"]:
                return found
        time.sleep(_POLL_S)


def _print(found: dict[str, Any]) -> None:
    click.echo(f"{found['judgements']} judgements, {found['queries']} queries with something relevant")
    if found["unknown_documents"]:
        click.echo(
            f"{found['unknown_documents']} judgements name documents that are not in the collection and do not count; "
            "ids are as `switchyard search` shows them (--source puts a name in front)"
        )
    fit = found["fit"]
    if found["problem"]:
        click.echo(f"the fit failed: {found['problem']}")
    elif fit is None:
        click.echo(f"no weight is fitted: {found['missing']} more judged queries are needed; the default fusion stays")
    else:
        click.echo(f"nDCG@10 on {fit['num_held_out']} held-out queries:")
        for name, label in (
            ("dense", "meaning alone"),
            ("lexical", "words alone"),
            ("default", "default fusion"),
            ("fitted", f"weight of meaning {fit['alpha']:g}, fitted on {fit['num_fitted']} queries"),
        ):
            click.echo(f"  {fit[name]:.3f}  {label}")
        interval = f"{fit['gain']:+.3f} (95 %: {fit['gain_low']:+.3f} to {fit['gain_high']:+.3f})"
        verdict = "searches use it" if fit["is_used"] else "it does worse, so the default fusion stays"
        click.echo(f"gain over the default {interval}: {verdict}")
