"""The confusion matrix as SVG: a cell for a pair of labels, named where the pointer rests; numbers in large ones."""

from __future__ import annotations

from engine.report.html import Html, tag
from engine.tuning.report.confusion import Confusion

# More labels than this are too many to be read: those with the most mistakes are shown.
MAX_LABELS = 80
_NUMBERS_UP_TO = 20
_LABEL_CHARACTERS = 30


def shown_labels(confusion: Confusion) -> tuple[str, ...]:
    """All labels, or the MAX_LABELS that take part in most mistakes; sorted."""
    if len(confusion.labels) <= MAX_LABELS:
        return confusion.labels
    mistakes = dict.fromkeys(confusion.labels, 0)
    for (true, said), count in confusion.confused:
        mistakes[true] += count
        mistakes[said] += count
    worst = sorted(confusion.labels, key=lambda label: (-mistakes[label], label))
    return tuple(sorted(worst[:MAX_LABELS]))


def matrix(confusion: Confusion) -> Html:
    """Rows are true labels, columns what the adapter said; a cell is as dark as its share of the row."""
    labels = shown_labels(confusion)
    cell, font = (34, 12) if len(labels) <= _NUMBERS_UP_TO else (11, 9)
    longest = min(_LABEL_CHARACTERS, max(map(len, labels)))
    left = round(longest * font * 0.6) + 10
    # Columns are labelled at 60 degrees: shorter than upright, and readable without turning the head.
    top, right = round(left * 0.87) + font, round(left * 0.5)
    width, height = left + cell * len(labels) + right, top + cell * len(labels) + 2
    place = {label: number for number, label in enumerate(labels)}
    side = cell * len(labels)
    parts = [tag("rect", class_="frame", x=left, y=top, width=side, height=side)]
    for index, label in enumerate(labels):
        shown = label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"
        middle = cell * index + cell / 2
        y, x = top + middle + font / 3, left + middle
        parts.append(tag("text", shown, tag("title", label), x=left - 6, y=f"{y:g}", text_anchor="end"))
        turned = f"translate({x + font / 4:g} {top - 6}) rotate(-60)"
        parts.append(tag("text", shown, tag("title", label), transform=turned))
        if index:
            line = cell * index
            parts.append(tag("line", class_="rule", x1=left, x2=left + side, y1=top + line, y2=top + line))
            parts.append(tag("line", class_="rule", x1=left + line, x2=left + line, y1=top, y2=top + side))
    rows_of = confusion.rows_of
    for (true, said), count in sorted(confusion.counts.items()):
        if true not in place or said not in place:
            continue
        share = count / rows_of[true]
        is_right = true == said
        # The square root keeps a single mistake among many rows visible.
        opacity = 0.15 + 0.75 * (share if is_right else share**0.5)
        kind = "wrong" if not is_right else "right strong" if opacity > 0.6 else "right"
        x, y = left + cell * place[said], top + cell * place[true]
        what = f"{true}: {count} of {rows_of[true]} " + ("right" if is_right else f"taken for {said}")
        square = tag("rect", class_=kind, x=x, y=y, width=cell, height=cell, fill_opacity=f"{opacity:.2f}")
        number = tag("text", count, x=f"{x + cell / 2:g}", y=f"{y + cell / 2 + 4:g}", text_anchor="middle")
        parts.append(tag("g", tag("title", what), square, number if cell > font * 2 else None))
    return tag(
        "svg",
        parts,
        class_="matrix",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        font_size=font,
        aria_hidden="true",
        focusable="false",
    )
