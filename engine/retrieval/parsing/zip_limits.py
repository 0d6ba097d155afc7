"""What a file that is a zip archive would unpack to, before anything unpacks it."""

from __future__ import annotations

import zipfile
from io import BytesIO

from engine.errors import UnparsableDocument

MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 256 * 1024**2
# Deflate reaches 1032; the XML of a large spreadsheet reaches 20 to 50. Small entries may be all blanks.
MAX_RATIO = 200
_RATIO_COUNTS_FROM_BYTES = 4 * 1024**2
_ZIP = b"PK\x03\x04"
# Before Office 2007, and as the wrapping of encrypted files ever since.
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def check_office_zip(body: bytes, kind: str) -> None:
    """Refuse an archive that is none, is encrypted, damaged or unpacks to more than an office file has reason to.

    Workbooks embedded for the charts of a presentation may be archives themselves: nothing unpacks those.
    Raises: UnparsableDocument.
    """
    if body.startswith(_OLE):
        raise _refused(kind, f"is encrypted or of the format before 2007. Save it without a password as .{kind}")
    try:
        with zipfile.ZipFile(BytesIO(body)) as archive:
            entries = archive.infolist()
            _check_sizes(kind, entries)
            for entry in entries:
                _check_entry(kind, archive, entry)
    except (UnparsableDocument, MemoryError):
        raise
    except Exception as error:
        # Beside BadZipFile, zipfile raises OSError, ValueError, EOFError, struct.error and NotImplementedError.
        raise _refused(
            kind, f"is no readable zip archive ({type(error).__name__}: {str(error)[:200]}). Save it again as .{kind}"
        ) from None
    if not any(entry.filename == "[Content_Types].xml" for entry in entries):
        raise _refused(kind, f"is a zip archive, but not of an office file. Save it again as .{kind}")


def _check_sizes(kind: str, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise _refused(kind, f"holds {len(entries)} files, allowed are {MAX_ENTRIES}. Split it")
    # Readers unpack no more of an entry than it declares, so the declared size is the most that it can cost.
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise _refused(
            kind, f"unpacks to {unpacked} bytes, allowed are {MAX_UNPACKED_BYTES}. Split it, or take images out"
        )


def _check_entry(kind: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1:
        raise _refused(kind, f"has an encrypted entry ({entry.filename[:80]!r}). Save it without a password")
    if entry.file_size > max(_RATIO_COUNTS_FROM_BYTES, MAX_RATIO * entry.compress_size):
        raise _refused(
            kind,
            f"unpacks {entry.filename[:80]!r} from {entry.compress_size} to {entry.file_size} bytes, more than "
            f"{MAX_RATIO} to one, as a decompression bomb does. Save it again from its program",
        )
    if "/embeddings/" in entry.filename or entry.is_dir():
        return
    with archive.open(entry) as opened:
        if opened.read(len(_ZIP)) == _ZIP:
            raise _refused(kind, f"holds another archive ({entry.filename[:80]!r}). Take it out")


def _refused(kind: str, why: str) -> UnparsableDocument:
    return UnparsableDocument(f"the .{kind} file {why}.", param="body")
