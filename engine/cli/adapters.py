"""`switchyard adapters`: what a server has loaded, what it could load, and which version of it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from engine.cli.adapter_loading import add_adapter
from engine.cli.client import Client, client_options, print_json
from engine.errors import ServerUnreachable, UnknownAdapter
from engine.generation.adapters.catalogue import AdapterCatalogue
from engine.generation.adapters.versions import AdapterVersion, AdapterVersions
from engine.retrieval.store.address import chosen_store
from engine.tuning.adapter_store import open_adapters

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
data_option = click.option(
    "--data",
    envvar="SWITCHYARD_DATA",
    default=".switchyard",
    show_default=True,
    type=click.Path(path_type=Path),
    help="State folder of the server.",
)


@click.group()
def adapters() -> None:
    """Load and unload LoRA adapters of a running server.

    An adapter is a folder as PEFT saves it. `add` and `switchyard tune` put it into the server's data folder under
    adapters/, version by version. What is loaded stays loaded over restarts.

    \b
    Example:
      switchyard adapters list
      switchyard adapters load support-bot
    """


@adapters.command("list")
@json_option
@client_options
def list_(as_json: bool, url: str, api_key: str | None) -> None:
    """List adapters that are loaded, and those that could be.

    \b
    Example:
      switchyard adapters list
    """
    found = Client(url, api_key).call("GET", "/v1/adapters")
    if as_json:
        print_json(found)
        return
    for card in found["data"]:
        click.echo(f"{card['name']:<24} {_state(card)}")
    if not found["data"]:
        click.echo("no adapters")


@adapters.command()
@click.argument("name")
@json_option
@client_options
def show(name: str, as_json: bool, url: str, api_key: str | None) -> None:
    """Print what is known of adapter NAME: its state, its task, its figures and its versions.

    \b
    Example:
      switchyard adapters show support-bot
    """
    cards = {card["name"]: card for card in Client(url, api_key).call("GET", "/v1/adapters")["data"]}
    if name not in cards:
        raise UnknownAdapter(name, cards)
    if as_json:
        print_json(cards[name])
        return
    for key, text in _lines(cards[name]):
        click.echo(f"{key:<8} {text}")


@adapters.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the adapter; default: that of the folder.")
@data_option
@client_options
def add(folder: Path, name: str | None, data: Path, url: str, api_key: str | None) -> None:
    """Copy the adapter in FOLDER into the data folder, as the newest version of its name, and load it.

    Where no server answers, it can be loaded later.

    \b
    Example:
      switchyard adapters add examples/adapters/banking77
      switchyard adapters add checkpoints/run-7 --name support-bot
    """
    add_adapter(Client(url, api_key), name or folder.resolve().name, folder, data, url)


@adapters.command()
@click.argument("name")
@click.option("--path", help="Folder on the server with the adapter's files; default: adapters/NAME.")
@click.option("--version", help="Version to load, from now on the current one.")
@json_option
@client_options
def load(name: str, path: str | None, version: str | None, as_json: bool, url: str, api_key: str | None) -> None:
    """Load adapter NAME: its current version, or what its folder holds by now.

    \b
    Example:
      switchyard adapters load support-bot
      switchyard adapters load support-bot --path support-bot-v2
    """
    asked = {"name": name, "path": path, "version": version}
    body = {key: value for key, value in asked.items() if value is not None}
    card = Client(url, api_key).call("POST", "/v1/adapters", json=body)
    if as_json:
        print_json(card)
        return
    click.echo(f"{card['name']}: {_state(card)}")


@adapters.command()
@click.argument("name")
@click.argument("version", required=False)
@data_option
@json_option
@client_options
def rollback(name: str, version: str | None, data: Path, as_json: bool, url: str, api_key: str | None) -> None:
    """Go back to an earlier version of adapter NAME: the one before the current one, or VERSION.

    Where a server answers, it serves that version to the next request. Where none does, the next one to start will.

    \b
    Example:
      switchyard adapters rollback support-bot
      switchyard adapters rollback support-bot 3f9a0c12be47
    """
    client = Client(url, api_key)
    try:
        cards = {card["name"]: card for card in client.call("GET", "/v1/adapters")["data"]}
    except ServerUnreachable:
        kept = open_adapters(data, chosen_store(None))
        if name not in kept.names():
            raise
        _roll_back_files(kept, name, version, url, as_json)
        return
    if name not in cards:
        raise UnknownAdapter(name, cards)
    version = version or _versions(cards[name]).previous(name)
    card = client.call("POST", "/v1/adapters", json={"name": name, "version": version})
    if as_json:
        print_json(card)
        return
    click.echo(f"{name}: {_state(card)}")


@adapters.command()
@click.argument("name")
@json_option
@client_options
def unload(name: str, as_json: bool, url: str, api_key: str | None) -> None:
    """Unload adapter NAME; its files stay.

    \b
    Example:
      switchyard adapters unload support-bot
    """
    _delete(name, False, as_json, Client(url, api_key))


@adapters.command()
@click.argument("name")
@json_option
@client_options
def remove(name: str, as_json: bool, url: str, api_key: str | None) -> None:
    """Unload adapter NAME and delete its folder, with every version.

    \b
    Example:
      switchyard adapters remove support-bot
    """
    _delete(name, True, as_json, Client(url, api_key))


def _delete(name: str, files: bool, as_json: bool, client: Client) -> None:
    gone = client.call("DELETE", f"/v1/adapters/{quote(name, safe='')}", params={"files": files})
    if as_json:
        print_json(gone)
        return
    click.echo(f"{name}: {'removed' if files else 'unloaded'}")


def _roll_back_files(registry: AdapterCatalogue, name: str, version: str | None, url: str, as_json: bool) -> None:
    found = registry.use(name, version or registry.versions(name).previous(name))
    if as_json:
        print_json({"name": name, "version": found, "loaded": False})
        return
    click.echo(f"{name}: version {found} is the current one; no server answers at {url} to load it")


def _versions(card: dict[str, Any]) -> AdapterVersions:
    """What a card says of them."""
    fields = AdapterVersion.model_fields
    listed = [AdapterVersion(**{key: each[key] for key in fields}) for each in card["versions"]]
    current = next((each["version"] for each in card["versions"] if each["current"]), None)
    return AdapterVersions(current=current, versions=tuple(listed))


def _lines(card: dict[str, Any]) -> list[tuple[str, str]]:
    """A card for people: what it says, without what says nothing."""
    lines = []
    for key, value in card.items():
        if key in ("object", "versions") or value in (None, [], {}, ""):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {figure:.4g}" for name, figure in value.items())
        lines.append((key, ", ".join(value) if isinstance(value, list) else str(value)))
    for each in reversed(card["versions"]):
        added = datetime.fromtimestamp(each["added_at"]).strftime("%Y-%m-%d %H:%M:%S")
        marks = ["current"] * each["current"] + ["loaded"] * (card["loaded"] and each["digest"] == card["digest"])
        lines.append((each["version"], " ".join(["added", added, *(f"({mark})" for mark in marks)])))
    return lines


def _state(card: dict[str, Any]) -> str:
    if card["error"]:
        return f"failed: {card['error']}"
    about = f", {card['task']}" if card["task"] else ""
    if card["labels"]:
        about += f" with {len(card['labels'])} labels"
    if not card["loaded"]:
        return f"not loaded ({card['path']}{about})"
    return f"loaded, rank {card['rank']}, {'/'.join(card['targets'])}, digest {card['digest'][:12]}{about}"
