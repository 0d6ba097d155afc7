"""HTML in which every text is escaped unless it was made here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

# Characters that no HTML document may hold; white space is left alone.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_EMPTY = {"meta", "br"}
_MAX_TEXT = 600


class Html(str):
    """Markup made by this module; any other string is text."""

    __slots__ = ()


Content = Html | str | int | None
Attribute = str | int | float | bool | None


def tag(name: str, /, *children: Content | Iterable[Content], **attributes: Attribute) -> Html:
    """An element. `class_` is written `class`, `aria_label` `aria-label`; None and False leave an attribute out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _EMPTY:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Content | Iterable[Content]) -> Html:
    """Children one after the other, texts escaped, None left out."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str | int):
            parts.append(escape(str(child)))
        else:
            parts.append(join(*child))
    return Html("".join(parts))


def escape(text: str) -> str:
    """Text as HTML shows it, in an element or an attribute; what no document may hold becomes U+FFFD."""
    return html.escape(_CONTROLS.sub("\ufffd", text), quote=True)


def quoted(text: str, most: int = _MAX_TEXT) -> Html:
    """A text of the user or of a model, cut short; its direction does not leak into its surroundings."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return tag("bdi", cut if cut.strip() else Html("<i>nothing</i>"))


def named(label: str) -> Html:
    """A label, which may break after an underscore."""
    return Html(quoted(label).replace("_", "_<wbr>"))


def table(caption: str, header: Sequence[Content], rows: Iterable[Sequence[Content]], *, numeric: bool = True) -> Html:
    """A table that scrolls by itself where it is wider than the page; the first cell of each row heads it.

    Args:
        numeric: the cells after the first are figures, aligned at their right, unless they are markup.
    """
    head = tag("thead", tag("tr", [_cell("th", cell, scope="col") for cell in header]))
    body = [
        tag("tr", [_cell("td", cell) if place else tag("th", cell, scope="row") for place, cell in enumerate(row)])
        for row in rows
    ]
    made = tag("table", tag("caption", caption), head, tag("tbody", body), class_="numeric" if numeric else None)
    return scrolling(made, caption)


def _cell(name: str, cell: Content, scope: str | None = None) -> Html:
    return tag(name, cell, scope=scope, class_="text" if isinstance(cell, Html) else None)


def scrolling(content: Html, label: str) -> Html:
    """A region that scrolls sideways, by keyboard too."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def section(identifier: str, title: str, *children: Content | Iterable[Content]) -> Html:
    """A part of the page with its heading."""
    heading = tag("h2", title, id=f"{identifier}-title")
    return tag("section", heading, *children, id=identifier, aria_labelledby=f"{identifier}-title")


def figure(
    picture: Html, label: str, caption: Content = None, legend: Content = None, *, scrolls_as: str | None = None
) -> Html:
    """A picture with its description for those who do not see it, and a caption for all.

    Args:
        scrolls_as: name of the region that scrolls sideways around a wide picture; None where it shrinks.
    """
    drawn = tag("div", picture, role="img", aria_label=label)
    if scrolls_as is not None:
        drawn = scrolling(drawn, scrolls_as)
    return tag("figure", legend, drawn, None if caption is None else tag("figcaption", caption))


def legend(*items: tuple[str, str]) -> Html:
    """What the lines of a plot are: class and words."""
    return tag("ul", [tag("li", text, class_=kind) for kind, text in items], class_="legend")
