"""An adapter's way into the data folder and into the server that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engine.cli.client import Client, ServerError
from engine.errors import ServerUnreachable, SwitchyardError
from engine.retrieval.store.address import chosen_store
from engine.tuning.adapter_store import open_adapters


def add_adapter(client: Client, name: str, folder: Path, data: Path, url: str) -> None:
    """Copy the adapter in `folder` into the data folder, or the database that SWITCHYARD_STORE names, as the current
    version of `name`, and have the server load it.

    Raises: InvalidAdapter and DataFolderError, and nothing changes; SwitchyardError where the server refuses it.
    """
    store = chosen_store(None)
    version = open_adapters(data, store).add(name, folder)
    click.echo(f"{name}: version {version} is the current one in {data if store is None else 'the store'}")
    load_adapter(client, name, url)


def load_adapter(client: Client, name: str, url: str) -> None:
    """Have the server serve the current version, and say how to ask for it; without a server, how to load it later.

    Raises: SwitchyardError where the server refuses it.
    """
    try:
        card = client.call("POST", "/v1/adapters", json={"name": name})
    except ServerUnreachable:
        click.echo(
            f"{name}: no server answers at {url}. "
            f"Load it where a server uses this data folder: switchyard adapters load {name}"
        )
        return
    except ServerError as error:
        raise SwitchyardError(
            f"{name}: the server at {url} did not load it: {error} Load it where a server uses this data folder "
            f"(switchyard adapters load {name}), or go back (switchyard adapters rollback {name})."
        ) from None
    click.echo(f"{name}: loaded by {url}; ask for it by model {name!r}")
    if card["labels"]:
        body = json.dumps({"model": name, "input": "..."})
        click.echo(f"  curl {url}/v1/classify -H 'Content-Type: application/json' -d '{body}'")
