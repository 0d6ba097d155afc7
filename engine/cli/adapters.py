"""`switchyard adapters`: what a server has loaded, and what it could load."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from engine.cli.client import Client, client_options, print_json
from engine.errors import UnknownAdapter

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def adapters() -> None:
    """Load and unload LoRA adapters of a running server.

    An adapter is a folder as PEFT saves it, in the server's data folder under adapters/. What is loaded stays loaded
    over restarts.

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
    """Print what is known of adapter NAME.

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
    for key, value in cards[name].items():
        if key != "object":
            click.echo(f"{key:<8} {', '.join(value) if isinstance(value, list) else value}")


@adapters.command()
@click.argument("name")
@click.option("--path", help="Folder on the server with the adapter's files; default: adapters/NAME.")
@json_option
@client_options
def load(name: str, path: str | None, as_json: bool, url: str, api_key: str | None) -> None:
    """Load adapter NAME, or load it again from changed files.

    \b
    Example:
      switchyard adapters load support-bot
      switchyard adapters load support-bot --path support-bot-v2
    """
    body: dict[str, Any] = {"name": name} | ({"path": path} if path else {})
    card = Client(url, api_key).call("POST", "/v1/adapters", json=body)
    if as_json:
        print_json(card)
        return
    click.echo(f"{card['name']}: {_state(card)}")


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
    """Unload adapter NAME and delete its folder.

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


def _state(card: dict[str, Any]) -> str:
    if card["error"]:
        return f"failed: {card['error']}"
    if not card["loaded"]:
        return f"not loaded ({card['path']})"
    return f"loaded, rank {card['rank']}, {'/'.join(card['targets'])}, digest {card['digest'][:12]}"
