"""`switchyard snapshot`: a collection of a stopped server to a file and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from engine.cli.client import print_json
from engine.errors import DataFolderError
from engine.retrieval.snapshots.format import Manifest
from engine.retrieval.snapshots.snapshot import Progress, restore_snapshot, verify_snapshot, write_snapshot
from engine.retrieval.store.address import VARIABLE
from engine.retrieval.store.data_folder import DATABASE_FILE
from engine.retrieval.store.inbox import count_waiting
from engine.retrieval.store.store import Store

F = TypeVar("F", bound=Callable[..., Any])


def _options(*, with_data: bool) -> Callable[[F], F]:
    def add(command: F) -> F:
        command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
        if with_data:
            command = click.option(
                "--data",
                envvar="SWITCHYARD_DATA",
                default=".switchyard",
                show_default=True,
                type=click.Path(path_type=Path),
                help="State folder of the stopped server.",
            )(command)
            command = click.option(
                "--store",
                envvar=VARIABLE,
                help="URL of the PostgreSQL database that holds the knowledge base; default: SQLite in --data.",
            )(command)
        return command

    return add


@click.group()
def snapshot() -> None:
    """Save a collection to one file, check such a file, and restore it.

    Works on the state folder of a stopped server. The file holds documents, chunks and vectors with their checksums,
    so nothing is embedded anew. Writes that still wait to be applied are not in it.

    \b
    Example:
      switchyard stop
      switchyard snapshot save default default.snapshot
      switchyard snapshot restore default.snapshot --as copy
    """


@snapshot.command()
@click.argument("collection")
@click.argument("file", type=click.Path(path_type=Path))
@_options(with_data=True)
def save(collection: str, file: Path, data: Path, store: str | None, as_json: bool) -> None:
    """Write COLLECTION to FILE; an earlier snapshot there is replaced once the new one is complete.

    \b
    Example:
      switchyard snapshot save default backups/default.snapshot
    """
    if store is None and not (data / DATABASE_FILE).exists():
        raise DataFolderError(f"{data}: holds no knowledge base. Name the folder of your server with --data.")
    with contextlib.closing(Store(data, url=store)) as opened, _progress() as progress:
        manifest = write_snapshot(opened, collection, file, progress=progress)
        with opened.reading() as connection:
            num_waiting = count_waiting(connection, collection)
    _report(file, manifest, "saved", as_json)
    if num_waiting:
        click.echo(
            f"note: {num_waiting} writes to {collection} wait to be applied and are not in the snapshot; start the "
            "server, let their jobs end, and save again",
            err=True,
        )


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "as_name", metavar="NAME", help="Name of the collection; default: the one it had.")
@click.option("--replace", is_flag=True, help="Put it in place of the collection of that name.")
@_options(with_data=True)
def restore(file: Path, as_name: str | None, replace: bool, data: Path, store: str | None, as_json: bool) -> None:
    """Put the collection in FILE into the state folder, after all of the file was checked.

    \b
    Example:
      switchyard snapshot restore backups/default.snapshot --as yesterday
    """
    if store is None and not (data / DATABASE_FILE).exists():
        # A file that cannot be restored must not leave an empty knowledge base behind.
        verify_snapshot(file)
    with contextlib.closing(Store(data, url=store)) as opened, _progress() as progress:
        restored = restore_snapshot(opened, file, as_name=as_name, replace=replace, progress=progress)
    if as_json:
        print_json({"file": str(file), **asdict(restored)})
        return
    click.echo(
        f"restored {restored.collection} from {file}: {restored.documents} documents, {restored.chunks} chunks; "
        f"index version {restored.version}"
    )


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@_options(with_data=False)
def verify(file: Path, as_json: bool) -> None:
    """Check every checksum, count and value in FILE; needs no server and no state folder.

    \b
    Example:
      switchyard snapshot verify backups/default.snapshot
    """
    with _progress() as progress:
        manifest = verify_snapshot(file, progress=progress)
    _report(file, manifest, "sound:", as_json)


def _report(file: Path, manifest: Manifest, what: str, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(file), **manifest.model_dump()})
        return
    click.echo(
        f"{what} {manifest.collection} at version {manifest.version} in {file}: {manifest.documents} documents, "
        f"{manifest.chunks} chunks, {file.stat().st_size / 1e6:,.1f} MB; embedded by {manifest.encoder.name}"
    )


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with ProgressBar(*columns, TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
