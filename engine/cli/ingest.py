"""`switchyard ingest`: files and folders into a collection, over HTTP."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.cli.client import Client, ServerError, client_options, print_json
from engine.errors import SwitchyardError
from engine.retrieval.parsing.formats import BINARY_TYPES, CONTENT_TYPES

BATCH_BYTES = 256 * 1024
BATCH_ITEMS = 32
_JSON_LINES = (".jsonl", ".ndjson")
# Bad request, too large, and a type that the server does not read.
_OF_ONE_FILE = (400, 413, 415)


@dataclass(frozen=True, slots=True)
class LocalDocument:
    """A document found on disk; `name` is its id without the source. What is no text (`is_binary`) has none here: the
    file is read again when its turn comes."""

    name: str
    origin: str
    content_type: str
    body_hash: str
    text: str = ""
    is_binary: bool = False
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What happened, by status, with the reasons of failures."""

    counts: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    embedded: int = 0
    version: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    def fail(self, name: str, why: str) -> None:
        """Count one document that could not be stored."""
        self.counts["failed"] += 1
        self.failures.append({"id": name, "error": why})


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--collection", default="default", show_default=True, help="Collection to write to.")
@click.option("--source", help="Name that the documents' ids begin with; default: the collection's only source.")
@click.option("--sync", is_flag=True, help="Also delete what this source has on the server but not on disk.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def ingest(
    paths: tuple[Path, ...],
    collection: str,
    source: str | None,
    sync: bool,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Add files and folders (md, markerb, txt, html, pdf, csv, tsv, jsonl, docx, pptx, xlsx); unchanged ones are
    skipped by their content.

    A document's id is `source/relative path`. In a jsonl file with lines {"id", "text", "title"?, "metadata"?} each
    line is a document, and its id is `source/id`; any other jsonl file is one document, like a csv file.

    \b
    Example:
      switchyard ingest docs/ --collection handbook --sync
    """
    started = time.perf_counter()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tally = Tally()
    documents = list(_scan(paths, tally, console))
    if not documents and not tally.failures:
        raise SwitchyardError(
            f"no documents found in {', '.join(map(str, paths))}; supported: {', '.join(sorted(CONTENT_TYPES))}."
        )
    client = Client(url, api_key)
    info = _collection_info(client, collection)
    tally.version = info["version"]
    source = source or _only_source(info, paths)
    known = dict(_known_hashes(client, collection, source))
    by_id = _by_id(source, documents)
    # The hash covers the text only, so a document that brings more is sent; the server skips it if all is the same.
    changed = [
        (id, document)
        for id, document in by_id.items()
        if document.title or document.metadata or known.get(id) != document.body_hash
    ]
    tally.counts["unchanged"] += len(by_id) - len(changed)
    items = [(id, _put(id, document)) for id, document in changed if not document.is_binary]
    files = [(id, document) for id, document in changed if document.is_binary]
    gone: list[str] = []
    if sync:
        # A file that is there but could not be read is not gone.
        unreadable = {f"{source}/{failure['id']}" for failure in tally.failures}
        gone = sorted(known.keys() - by_id.keys() - unreadable)
        items += [(id, {"id": id, "delete": True}) for id in gone]
    _send(client, collection, items, files, tally, console)
    seconds = time.perf_counter() - started
    report = {
        "collection": collection,
        "source": source,
        **{name: tally.counts[name] for name in ("created", "updated", "unchanged", "deleted", "failed")},
        "chunks": tally.chunks,
        "embedded": tally.embedded,
        "version": tally.version,
        "seconds": round(seconds, 2),
        "failures": tally.failures,
    }
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    if tally.failures:
        raise SwitchyardError(
            f"{len(tally.failures)} documents failed; the others are stored. Mend them and run again."
        )


def _scan(paths: Sequence[Path], tally: Tally, console: Console) -> Iterator[LocalDocument]:
    skipped: Counter[str] = Counter()
    for path in paths:
        if not path.exists():
            raise SwitchyardError(f"{path} does not exist.")
        for file in _files(path):
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            suffix = file.suffix.lower()
            content_type = CONTENT_TYPES.get(suffix)
            if content_type is None:
                if file == path:
                    raise SwitchyardError(
                        f"{path}: type {suffix or 'none'} is not supported; "
                        f"supported: {', '.join(sorted(CONTENT_TYPES))}."
                    )
                skipped[suffix or "no suffix"] += 1
                continue
            try:
                with file.open("rb") as opened:
                    body_hash = hashlib.file_digest(opened, "sha256").hexdigest()
                if content_type in BINARY_TYPES:
                    yield LocalDocument(name, str(file), content_type, body_hash, is_binary=True)
                    continue
                text = file.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                tally.fail(name, f"is not UTF-8 text (byte {error.start}); convert it, or leave it out")
                continue
            except OSError as error:
                tally.fail(name, f"cannot be read ({error.strerror})")
                continue
            if suffix in _JSON_LINES and _holds_documents(text):
                yield from _documents_of_lines(name, text, tally)
            else:
                yield LocalDocument(name, str(file), content_type, body_hash, text)
    if skipped:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common())
        console.print(f"[dim]skipped files of other types: {kinds}[/dim]")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden:
            yield file


def _holds_documents(text: str) -> bool:
    """Whether any line is a document of its own; otherwise the lines are rows of one."""
    for line in _lines(text):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.keys() >= {"id", "text"}:
            return True
    return False


def _lines(text: str) -> list[str]:
    # str.splitlines would also cut at characters that JSON allows inside of a string.
    return text.removeprefix("\ufeff").split("\n")


def _documents_of_lines(name: str, text: str, tally: Tally) -> Iterator[LocalDocument]:
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            content = str(row["text"])
            yield LocalDocument(
                str(row["id"]),
                f"{name}:{number}",
                "text/markdown",
                hashlib.sha256(content.encode()).hexdigest(),
                content,
                title=row.get("title"),
                metadata=row.get("metadata") or {},
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            tally.fail(f"{name}:{number}", f'is not a document ({why}); expected {{"id": ..., "text": ...}}')


def _collection_info(client: Client, collection: str) -> dict[str, Any]:
    try:
        return client.call("GET", f"/v1/collections/{quote(collection, safe='')}")
    except ServerError as error:
        if error.status != 404:
            raise
        return {"name": collection, "version": 0, "sources": []}


def _only_source(info: dict[str, Any], paths: Sequence[Path]) -> str:
    """The collection's only source; for a first ingest the name of the folder."""
    sources = info["sources"]
    if len(sources) > 1:
        raise SwitchyardError(
            f"collection {info['name']!r} has several sources ({', '.join(sources)}); name one with --source."
        )
    if sources and sources[0]:
        return str(sources[0])
    first = paths[0].resolve()
    return (first if first.is_dir() else first.parent).name or "files"


def _known_hashes(client: Client, collection: str, source: str) -> Iterator[tuple[str, str]]:
    after = None
    while True:
        params = {"source": source, "limit": "1000"} | ({"after": after} if after else {})
        try:
            page = client.call("GET", f"/v1/collections/{quote(collection, safe='')}/documents", params=params)
        except ServerError as error:
            if error.status == 404:
                return
            raise
        for row in page["documents"]:
            yield row["id"], row["content_hash"]
        after = page["next"]
        if after is None:
            return


def _by_id(source: str, documents: Iterable[LocalDocument]) -> dict[str, LocalDocument]:
    by_id: dict[str, LocalDocument] = {}
    for document in documents:
        id = f"{source}/{document.name}"
        if id in by_id:
            raise SwitchyardError(
                f"{document.origin} and {by_id[id].origin} would both be {id}; ingest them under two --source names."
            )
        by_id[id] = document
    return by_id


def _put(id: str, document: LocalDocument) -> dict[str, Any]:
    item: dict[str, Any] = {"id": id, "text": document.text, "content_type": document.content_type}
    if document.title:
        item["title"] = document.title
    if document.metadata:
        item["metadata"] = document.metadata
    return item


def _send(
    client: Client,
    collection: str,
    items: Sequence[tuple[str, dict[str, Any]]],
    files: Sequence[tuple[str, LocalDocument]],
    tally: Tally,
    console: Console,
) -> None:
    columns = (
        TextColumn("ingest"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[chunks]} chunks"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("ingest", total=len(items) + len(files), chunks=0)
        for batch in _batches(items):
            try:
                answer = client.call(
                    "POST",
                    f"/v1/collections/{quote(collection, safe='')}/documents:batch",
                    content=b"".join(line for _, line in batch),
                    headers={"Content-Type": "application/x-ndjson"},
                )
            except ServerError as error:
                # A file over the size limit travels alone; anything else stops the run with the server's message.
                if error.status != 413:
                    raise
                for id, _ in batch:
                    tally.fail(id, str(error))
            else:
                for result in answer["results"]:
                    _count(result, tally)
                tally.version = max(tally.version, answer["version"])
            progress.update(task, advance=len(batch), chunks=tally.chunks)
        for id, document in files:
            _send_file(client, collection, id, document, tally)
            progress.update(task, advance=1, chunks=tally.chunks)


def _send_file(client: Client, collection: str, id: str, document: LocalDocument, tally: Tally) -> None:
    """Send a file as it is. What is wrong with this file stops no other; anything else ends the run."""
    try:
        body = Path(document.origin).read_bytes()
    except OSError as error:
        tally.fail(id, f"cannot be read ({error.strerror})")
        return
    try:
        result = client.call(
            "PUT",
            f"/v1/collections/{quote(collection, safe='')}/documents/{quote(id)}",
            content=body,
            headers={"Content-Type": document.content_type},
        )
    except ServerError as error:
        if error.status not in _OF_ONE_FILE:
            raise
        tally.fail(id, str(error))
    else:
        _count(result, tally)
        tally.version = max(tally.version, result["version"])


def _batches(items: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for id, item in items:
        line = json.dumps(item).encode() + b"\n"
        if batch and (size + len(line) > BATCH_BYTES or len(batch) >= BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append((id, line))
        size += len(line)
    if batch:
        yield batch


def _count(result: dict[str, Any], tally: Tally) -> None:
    if result["status"] == "failed":
        tally.fail(result["id"], result["error"])
        return
    tally.counts[result["status"]] += 1
    tally.chunks += result["chunks"]
    tally.embedded += result["embedded"]


def _print_report(report: dict[str, Any]) -> None:
    counts = ", ".join(f"{report[name]} {name}" for name in ("created", "updated", "unchanged", "deleted", "failed"))
    click.echo(f"{report['collection']}/{report['source']}: {counts}")
    click.echo(
        f"{report['chunks']} chunks written, {report['embedded']} of them embedded anew, "
        f"in {report['seconds']:.1f} s; index version {report['version']}"
    )
    for failure in report["failures"]:
        click.echo(f"failed: {failure['id']}: {failure['error']}", err=True)
