"""What `switchyard up` shows once the server answers: the sample knowledge base and one real question."""

from __future__ import annotations

from pathlib import Path

import click

from engine.cli.ask import ask
from engine.cli.client import Client
from engine.cli.ingest import ingest

# The project's own documentation, where this is a checkout: the first answer is about the assistant itself.
CHECKOUT_DOCS = Path(__file__).parents[2] / "docs"
QUESTION = "Which port does the server use?"


def show_first_answer(url: str, sample: Path | None, question: str | None) -> None:
    """Ingest `sample` when there is no document yet, then ask."""
    is_empty = not Client(url).call("GET", "/v1/collections")["collections"]
    folder = sample or CHECKOUT_DOCS
    if is_empty and folder.is_dir():
        click.echo(f"\nthe knowledge base is empty: ingesting {folder}")
        ingest.main([str(folder), "--url", url], standalone_mode=False)
    elif is_empty:
        click.echo(
            f"\nthe knowledge base is empty, and there is no folder {folder}: add documents with switchyard ingest"
        )
    asked = question or QUESTION
    click.echo(f'\n$ switchyard ask "{asked}"\n')
    ask.main([asked, "--url", url], standalone_mode=False)
