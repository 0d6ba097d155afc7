"""A page that needs nothing else: its head, its verdict, links to its sections, and the sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Literal

from engine.tuning.report.html import Html, tag

Tone = Literal["good", "mixed", "bad"]

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
    style = Html((files("engine.tuning.report") / "style.css").read_text(encoding="utf-8"))
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


def _contents(sections: Sequence[Html]) -> Html:
    """Links to the sections, by their headings."""
    found = [match.groups() for each in sections if (match := _HEADING.match(each))]
    items = [tag("li", tag("a", Html(title), href=f"#{identifier}")) for identifier, title in found]
    return tag("nav", tag("ul", items), aria_label="Contents")
