"""`switchyard ingest`: files and folders into a collection, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console

from engine.cli.client import DEFAULT_URL, Client, ServerError, client_options, print_json
from engine.cli.scanning import LocalDocument, Tally, scan
from engine.cli.sending import Sender
from engine.errors import SwitchyardError
from engine.retrieval.parsing.formats import CONTENT_TYPES


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--collection", default="default", show_default=True, help="Collection to write to.")
@click.option("--source", help="Name that the documents' ids begin with; default: the collection's only source.")
@click.option("--sync", is_flag=True, help="Also delete what this source has on the server but not on disk.")
@click.option("--background", is_flag=True, help="Return once all is stored safely; the server indexes it afterwards.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def ingest(
    paths: tuple[Path, ...],
    collection: str,
    source: str | None,
    sync: bool,
    background: bool,
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
      switchyard ingest docs/ --background
    """
    started = time.perf_counter()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tally = Tally()
    documents = list(scan(paths, tally, console))
    if not documents and not tally.failures:
        raise SwitchyardError(
            f"no documents found in {', '.join(map(str, paths))}; supported: {', '.join(sorted(CONTENT_TYPES))}."
        )
    client = Client(url, api_key)
    info = _collection_info(client, collection)
    tally.version = info["version"]
    source = source or _only_source(info, paths)
    pending = _pending_job(client, collection)
    if sync and pending:
        raise SwitchyardError(
            f"job {pending} still writes to collection {collection!r}, and --sync compares with what is written. "
            f"Let it end first: switchyard jobs {pending} --follow"
        )
    known = dict(_known_hashes(client, collection, source))
    by_id = _by_id(source, documents)
    # The hash covers the text only, so a document that brings more is sent; the server skips it if all is the same.
    # While a job runs, what is stored is not yet what will be.
    changed = [
        (id, document)
        for id, document in by_id.items()
        if pending or document.title or document.metadata or known.get(id) != document.body_hash
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
    sender = Sender(client, collection, tally, is_background=background)
    sender.send(items, files, console)
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
    if background:
        report |= {"accepted": tally.counts["accepted"], "job": sender.job}
    if as_json:
        print_json(report)
    elif background:
        _print_accepted(report, url)
    else:
        _print_report(report)
    if tally.failures:
        raise SwitchyardError(
            f"{len(tally.failures)} documents failed; the others are stored. Mend them and run again."
        )


def _pending_job(client: Client, collection: str) -> str | None:
    """A job whose writes to the collection are not all applied yet."""
    for job in client.call("GET", "/v1/jobs", params={"limit": "1000"})["jobs"]:
        if job["collection"] == collection and job["finished_at"] is None:
            return str(job["id"])
    return None


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


def _print_report(report: dict[str, Any]) -> None:
    counts = ", ".join(f"{report[name]} {name}" for name in ("created", "updated", "unchanged", "deleted", "failed"))
    click.echo(f"{report['collection']}/{report['source']}: {counts}")
    click.echo(
        f"{report['chunks']} chunks written, {report['embedded']} of them embedded anew, "
        f"in {report['seconds']:.1f} s; index version {report['version']}"
    )
    _print_failures(report)


def _print_accepted(report: dict[str, Any], url: str) -> None:
    counts = ", ".join(f"{report[name]} {name}" for name in ("accepted", "unchanged", "failed"))
    click.echo(f"{report['collection']}/{report['source']}: {counts}, in {report['seconds']:.1f} s")
    if report["job"]:
        click.echo(f"job {report['job']} indexes them; follow it with")
        click.echo(f"  switchyard jobs {report['job']} --follow{'' if url == DEFAULT_URL else f' --url {url}'}")
    _print_failures(report)


def _print_failures(report: dict[str, Any]) -> None:
    for failure in report["failures"]:
        click.echo(f"failed: {failure['id']}: {failure['error']}", err=True)
