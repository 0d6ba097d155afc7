"""What `switchyard tune` asks of a running server: passages for its prompts, and to load the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from engine.cli.client import Client, ServerError
from engine.errors import ServerUnreachable
from engine.values import Passage

if TYPE_CHECKING:
    from engine.tuning.run.making import Search


def index_search(client: Client, collection: str | None) -> Search:
    """Questions to passages of a collection, None being the server's default one."""

    def search(questions: Sequence[str], num: int) -> list[list[Passage]]:
        body: dict[str, Any] = {"queries": list(questions), "k": num}
        if collection is not None:
            body["collection"] = collection
        found = client.call("POST", "/v1/search", json=body)
        names = Passage.__slots__
        return [[Passage(**{name: hit[name] for name in names}) for hit in hits] for hits in found["results"]]

    return search


def load_adapter(client: Client, name: str, url: str) -> None:
    """Have the server serve the adapter, and say so; without a server, say how."""
    later = f"Load it where a server uses this data folder: switchyard adapters load {name}"
    try:
        client.call("POST", "/v1/adapters", json={"name": name})
    except ServerUnreachable:
        click.echo(f"{name}: no server answers at {url}. {later}")
    except ServerError as error:
        click.echo(f"{name}: the server at {url} did not load it: {error} {later}", err=True)
    else:
        click.echo(f"{name}: loaded by {url}; ask for it by model {name!r}")
