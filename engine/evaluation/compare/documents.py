"""Documents of a server: read, changed for a while, and put back as they were, whatever happens in between.

The server gives a document's text as it was read, not the file. Sent back, that text makes the same passages (this is
tried in a collection of its own before anything is changed), but the file's digest is another: the next
`switchyard ingest` sends the file once more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine.durable_files import write_file
from engine.errors import SwitchyardError
from engine.evaluation.asking import Server
from engine.http_errors import ServerError

# Nothing of the user's is ever written there.
SCRATCH = "switchyard-compare"
CHANGED_FILE = "changed-document.json"
_TYPES = ("text/markdown", "text/plain")


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as the server shows it. `content_type` None: not found out yet."""

    collection: str
    id: str
    text: str
    title: str | None
    metadata: dict[str, Any]
    chunks: int
    content_type: str | None = None


def document_path(collection: str, id: str) -> str:
    """Where it lies."""
    return f"/v1/collections/{quote(collection, safe='')}/documents/{quote(id)}"


async def read_document(server: Server, collection: str, id: str) -> Stored:
    """The document. Raises: ServerError where there is none."""
    got = await server.call("GET", document_path(collection, id))
    return Stored(collection, id, got["text"], got["title"], got["metadata"], got["chunks"])


async def write_document(server: Server, stored: Stored, text: str | None = None) -> dict[str, Any]:
    """Write it, searchable when this returns, with another text or its own; the server's answer."""
    body = {"text": stored.text if text is None else text, "metadata": stored.metadata}
    body |= {"title": stored.title} if stored.title else {}
    body |= {"content_type": stored.content_type} if stored.content_type else {}
    path = document_path(stored.collection, stored.id)
    return await server.call("PUT", path, params={"wait": "searchable"}, json=body)


async def delete_scratch(server: Server, id: str) -> None:
    """Delete a document of the collection that is nobody's."""
    try:
        await server.call("DELETE", document_path(SCRATCH, id))
    except ServerError as error:
        if error.status != 404:
            raise


async def restorable(server: Server, stored: Stored) -> Stored:
    """The document with the type under which its text makes the same passages again.

    Raises: SwitchyardError where none does; nothing of the document was changed.
    """
    trial_id = f"trial/{uuid.uuid4().hex}"
    try:
        for content_type in _TYPES:
            trial = Stored(SCRATCH, trial_id, stored.text, stored.title, stored.metadata, stored.chunks, content_type)
            await write_document(server, trial)
            if _is_same(await read_document(server, SCRATCH, trial_id), stored):
                return Stored(
                    stored.collection,
                    stored.id,
                    stored.text,
                    stored.title,
                    stored.metadata,
                    stored.chunks,
                    content_type,
                )
    finally:
        await delete_scratch(server, trial_id)
    raise SwitchyardError(
        f"document {stored.id!r} could not be put back as it was: its text alone does not make the same passages. "
        "Leave its row out of --updated-kb, or try the update on a copy of the document."
    )


@asynccontextmanager
async def changed(server: Server, stored: Stored, text: str, folder: Path) -> AsyncIterator[None]:
    """Within, the document has another text. Afterwards it is as it was: after errors and Ctrl-C too, which wait for
    it, and after a kill when `put_back` is called for the same folder.
    """
    note = folder / CHANGED_FILE
    content = {"before": asdict(stored), "changed_to": _body_digest(text)}
    try:
        write_file(note, (json.dumps(content, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    except OSError as error:
        raise SwitchyardError(f"{note}: cannot be written ({error.strerror}); nothing was changed.") from None
    try:
        await write_document(server, stored, text)
        yield
    finally:
        with _held_interrupts():
            # A task that is being cancelled could not wait for the server.
            await asyncio.shield(_restore(server, stored, note))


async def put_back(server: Server, folder: Path) -> str | None:
    """Restore what an earlier run that was killed left changed; the document's id, or None.

    A document that was written or deleted by somebody else meanwhile is left as it is.
    """
    note = folder / CHANGED_FILE
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        stored, digest = Stored(**content["before"]), content["changed_to"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SwitchyardError(f"{note}: cannot be read ({error}); it names the document to restore.") from None
    try:
        now = await server.call("GET", document_path(stored.collection, stored.id))
    except ServerError as error:
        if error.status != 404:
            raise
        now = {}
    if now.get("content_hash") != digest:
        note.unlink()
        return None
    await _restore(server, stored, note)
    return stored.id


async def _restore(server: Server, stored: Stored, note: Path) -> None:
    try:
        await write_document(server, stored)
        now = await read_document(server, stored.collection, stored.id)
    except SwitchyardError as error:
        raise SwitchyardError(
            f"document {stored.id!r} of collection {stored.collection!r} is still changed: {error} "
            f"Its old text is in {note}; the same command puts it back, and so does `switchyard ingest`."
        ) from None
    if not _is_same(now, stored):
        raise SwitchyardError(
            f"document {stored.id!r} of collection {stored.collection!r} is not as it was; ingest its file again. "
            f"Its old text is in {note}."
        )
    note.unlink()


def _body_digest(text: str) -> str:
    """What the server calls content_hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_same(one: Stored, other: Stored) -> bool:
    return (one.text, one.title, one.metadata, one.chunks) == (other.text, other.title, other.metadata, other.chunks)


@contextmanager
def _held_interrupts() -> Iterator[None]:
    """Ctrl-C waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
