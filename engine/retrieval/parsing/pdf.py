"""PDF to text, page by page. Runs in a parser's process, whose limits are what stops a hostile file."""

from __future__ import annotations

import re
from io import BytesIO

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.sections import Section
from engine.retrieval.parsing.text import ParsedDocument, one_line, printable, tidy

# Viewers look no further for the mark that a PDF begins with.
_HEADER_BYTES = 1024
_BLANK_LINES = re.compile(r"\n{3,}")
_ENCRYPTED = "is encrypted. Remove the encryption first: qpdf --decrypt --password=... in.pdf out.pdf"
_REPAIR = "Open it in a viewer and save it again, or repair it: qpdf broken.pdf mended.pdf"


def parse_pdf(body: bytes, limits: ParsingLimits) -> ParsedDocument:
    """The text of each page under a line "Page 3", which is its section; the title of the document information.

    A page without text is left out.
    Raises: UnparsableDocument for a file that is encrypted, damaged, cut off, without pages or without text, or over a
        limit.
    """
    # Importing pypdf takes longer than parsing a table, for which this process may have been started.
    from pypdf import PdfReader, overwrite_configuration
    from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError

    if b"%PDF-" not in body[:_HEADER_BYTES]:
        raise _refused(f"is none: %PDF- is not among its first {_HEADER_BYTES} bytes. Send the PDF file itself")
    if b"%%EOF" not in body:
        raise _refused("ends without its end mark %%EOF, so it was cut off. Copy or download it again")
    # The decoder of fax images is a program of its own; text needs none.
    overwrite_configuration(jbig2dec_binary=None)
    place = "its structure"
    try:
        reader = PdfReader(BytesIO(body))
        if reader.is_encrypted:
            raise _refused(_ENCRYPTED)
        num_pages = len(reader.pages)
        if num_pages == 0:
            raise _refused(f"has no pages. {_REPAIR}")
        if num_pages > limits.max_pages:
            raise _refused(f"has {num_pages} pages, allowed are {limits.max_pages}. Split it")
        pages = []
        num_chars = 0
        for number, page in enumerate(reader.pages, start=1):
            place = f"page {number}"
            pages.append(page.extract_text())
            num_chars += len(pages[-1])
            if num_chars > limits.max_chars:
                raise _refused(f"holds more than {limits.max_chars} characters by page {number}. Split it")
        place = "its document information"
        title = reader.metadata.title if reader.metadata is not None else None
    except (UnparsableDocument, MemoryError):
        raise
    except (DependencyError, FileNotDecryptedError):
        raise _refused(_ENCRYPTED) from None
    except LimitReachedError as error:
        raise _refused(f"unpacks into more than a page needs ({place}: {_cause(error)}). {_REPAIR}") from None
    except Exception as error:
        # Of broken files pypdf's documentation says that they may cause any exception.
        raise _refused(f"is damaged ({place}: {_cause(error)}). {_REPAIR}") from None
    parsed = _join(pages, title)
    if not parsed.sections:
        raise _refused(
            f"has no text on its {num_pages} pages, so they are images. Run OCR over it first: ocrmypdf in.pdf out.pdf"
        )
    return parsed


def _join(pages: list[str], title: object) -> ParsedDocument:
    pieces: list[str] = []
    sections = []
    length = 0
    for number, page in enumerate(pages, start=1):
        text = _BLANK_LINES.sub("\n\n", tidy(printable(page))).strip()
        if not text:
            continue
        name = f"Page {number}"
        # Pages stand further apart than paragraphs, so that the chunker cuts between them first.
        piece = ("\n\n\n" if pieces else "") + f"{name}\n\n{text}"
        sections.append(Section(length + len(piece) - len(piece.lstrip("\n")), (name,)))
        pieces.append(piece)
        length += len(piece)
    stated = one_line(printable(title)) if isinstance(title, str) else None
    return ParsedDocument("".join(pieces), stated, tuple(sections), is_markdown=False)


def _refused(why: str) -> UnparsableDocument:
    return UnparsableDocument(f"the PDF {why}.", param="body")


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
