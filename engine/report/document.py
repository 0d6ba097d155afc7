"""A page that needs nothing else: its head, its verdict, links to its sections, and the sections."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from engine.durable_files import write_file
from engine.errors import SwitchyardError
from engine.report.html import Html, tag

Tone = Literal["good", "mixed", "bad"]
HTML_FILE, JSON_FILE = "report.html", "report.json"

# Nothing is fetched and nothing runs, whatever a text in the data says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HEADING = re.compile(r'<section id="([a-z]+)"[^>]*><h2[^>]*>(.*?)</h2>')


def document(
    title: str, heading: str, about: str, headline: str, reasons: Sequence[str], tone: Tone, sections: Sequence[Html]
) -> Html:
    """The whole document.

    Args:
        title: of the window. heading: of the page. about: what it is of, in small letters.
        headline, reasons, tone: the verdict, and how it is coloured.
    """
    style = Html((files("engine.report") / "style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    listed = tag("ul", [tag("li", reason) for reason in reasons]) if reasons else None
    header = tag(
        "header",
        tag("h1", heading),
        tag("span", about, class_="soft"),
        tag("div", tag("p", headline, class_="headline"), listed, class_=f"verdict {tone}"),
    )
    body = tag("body", tag("main", header, _contents(sections), sections))
    return Html("<!doctype html>\n" + tag("html", head, body, lang="en") + "\n")


def write_document(folder: Path, page: Html, figures: dict[str, Any]) -> Path:
    """Write report.html and, with the same figures, report.json into `folder`, over older ones.

    Returns: the path of report.html. Raises: SwitchyardError when the folder cannot be written.
    """
    content = json.dumps(figures, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / JSON_FILE, f"{content}\n".encode(errors="backslashreplace"))
        write_file(folder / HTML_FILE, page.encode())
    except OSError as error:
        raise SwitchyardError(
            f"{folder}: the report cannot be written ({error.strerror}). Free disk space or name another folder."
        ) from None
    return folder / HTML_FILE


def _contents(sections: Sequence[Html]) -> Html:
    """Links to the sections, by their headings."""
    found = [match.groups() for each in sections if (match := _HEADING.match(each))]
    items = [tag("li", tag("a", Html(title), href=f"#{identifier}")) for identifier, title in found]
    return tag("nav", tag("ul", items), aria_label="Contents")
