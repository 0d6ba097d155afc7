"""`switchyard router feedback`: what users said of answers, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from engine.cli.client import Client, client_options, print_json
from engine.durable_files import write_file
from engine.errors import SwitchyardError

_PAGE = 500


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write; default: the terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def feedback(out: Path | None, as_json: bool, url: str, api_key: str | None) -> None:
    """Export what users said of answers (POST /v1/feedback), with what was decided and known of each.

    \b
    Example:
      switchyard router feedback --out feedback.jsonl
    """
    with Client(url, api_key) as client:
        _export(_rows(client), out, as_json)


def _export(rows: Iterator[dict[str, Any]], out: Path | None, as_json: bool) -> None:
    if out is not None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        try:
            write_file(out, "".join(lines).encode())
        except OSError as error:
            raise SwitchyardError(f"{out}: cannot be written ({error.strerror}). Name another file.") from None
        if as_json:
            print_json({"file": str(out), "ratings": len(lines)})
        else:
            click.echo(f"{len(lines)} ratings in {out}")
    elif as_json:
        print_json({"feedback": list(rows)})
    else:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))


def _rows(client: Client) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    while after is not None:
        page = client.call("GET", "/v1/feedback", params={"after": after, "limit": _PAGE})
        yield from page["feedback"]
        after = page["next"]
