"""Word, PowerPoint and Excel files to Markdown, by markitdown where it is installed. Runs in a parser's process."""

from __future__ import annotations

import html
import re
import zipfile
from io import BytesIO

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.sections import find_sections
from engine.retrieval.parsing.text import ParsedDocument, one_line, printable, tidy
from engine.retrieval.parsing.zip_limits import check_office_zip

_SLIDE = re.compile(r"<!-- Slide number: (\d+) -->")
_TITLE_OF_SLIDE = re.compile(r"^# ", re.MULTILINE)
# Names of image files and the beginnings of their bytes mean nothing to a search; what was written about them does.
_IMAGE = re.compile(r"!\[([^\]\n]{0,1000})\]\([^)\n]{0,1000}\)")
_STATED_TITLE = re.compile(r"<dc:title>([^<]{1,1000})</dc:title>")
_MAX_PROPERTIES_BYTES = 65_536


def parse_office(body: bytes, limits: ParsingLimits, *, kind: str) -> ParsedDocument:
    """Headings, paragraphs, lists and tables as Markdown; the slides of a presentation are sections "Slide 3".

    Args:
        kind: docx, pptx or xlsx.
    Raises: UnparsableDocument for a file that is damaged, encrypted, without text or over a limit, and where
        markitdown is not installed.
    """
    check_office_zip(body, kind)
    try:
        from markitdown import MissingDependencyException, StreamInfo
        from markitdown.converters import DocxConverter, PptxConverter, XlsxConverter
    except ImportError:
        raise _lacking(kind) from None
    converter = {"docx": DocxConverter, "pptx": PptxConverter, "xlsx": XlsxConverter}[kind]()
    try:
        raw = converter.convert(BytesIO(body), StreamInfo(extension=f".{kind}")).markdown
        title = _stated_title(body)
    except MissingDependencyException:
        raise _lacking(kind) from None
    except MemoryError:
        raise
    except Exception as error:
        # Several libraries read these files, each with errors of its own.
        raise UnparsableDocument(
            f"the .{kind} file is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}). "
            "Open it in its program and save it again.",
            param="body",
        ) from None
    text = _IMAGE.sub(r"\1", printable(raw))
    if kind == "pptx":
        text = _SLIDE.sub(r"# Slide \1", _TITLE_OF_SLIDE.sub("## ", text))
    text = tidy(text)
    if len(text) > limits.max_chars:
        raise UnparsableDocument(
            f"the .{kind} file holds {len(text)} characters, allowed are {limits.max_chars}. Split it.", param="body"
        )
    if not text.strip():
        raise UnparsableDocument(
            f"the .{kind} file has no text. Where its pages are images, export it as PDF and run OCR over that.",
            param="body",
        )
    sections = find_sections(text)
    # The first heading of a presentation is "Slide 1", that of a workbook often "Sheet1".
    first_heading = sections[0].path[-1] if sections and kind == "docx" else None
    return ParsedDocument(text, one_line(title or first_heading), sections, is_markdown=True)


def _stated_title(body: bytes) -> str | None:
    with zipfile.ZipFile(BytesIO(body)) as archive:
        if "docProps/core.xml" not in archive.namelist():
            return None
        with archive.open("docProps/core.xml") as opened:
            properties = opened.read(_MAX_PROPERTIES_BYTES).decode("utf-8", "replace")
    found = _STATED_TITLE.search(properties)
    title = printable(html.unescape(found[1])) if found is not None else None
    # What PowerPoint calls every file that nobody named.
    return None if title == "PowerPoint Presentation" else title


def _lacking(kind: str) -> UnparsableDocument:
    return UnparsableDocument(
        f".{kind} files are read by the extra `office`, which this server lacks. Install it and restart: "
        "pip install 'switchyard[office]'",
        param="body",
    )
