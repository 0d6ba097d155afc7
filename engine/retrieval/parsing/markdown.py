"""Markdown as people write it: YAML front matter, ERB tags and HTML wrappers around the text."""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

import yaml

from engine.retrieval.parsing.sections import split_fences

_MAX_FRONT_MATTER_CHARS = 16_384
# Arguments of a component call (`render Component.new(title: "...")`) that a reader of the page sees.
_SHOWN_ARGUMENT = re.compile(
    r"""\b(?:heading|title|name|description):\s*(?:"((?:[^"\\]|\\.)*+)"|'((?:[^'\\]|\\.)*+)')""", re.DOTALL
)
_BLOCKS = (
    "address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form header hr "
    "main nav ol p section summary table tbody tfoot thead tr ul"
).split()
_INLINE = (
    "a abbr b big cite code dfn em font i iframe img ins kbd mark picture q s samp small source span strike strong "
    "sub sup td th tt u var video"
).split()
_HEADINGS = [f"h{level}" for level in range(1, 7)]
_Replace = Callable[[re.Match[str]], tuple[str, int]]

# `<app-name>` and the like are placeholders in prose, so only names that HTML knows count as tags.
_NAMES = "|".join([*_BLOCKS, *_INLINE, *_HEADINGS, "li", "br", "pre"])
_TAG = re.compile(
    r"(?P<ticks>`+)|(?P<entity>&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});)"
    rf"|<(?P<closing>/?)(?P<tag>{_NAMES})\b(?!-)[^<>]{{0,2000}}>",
    re.IGNORECASE,
)
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")
_REGION = re.compile(r"(?P<ticks>`+)|<%|<!--|<(?P<raw>script|style)\b(?!-)", re.IGNORECASE)


def parse_markdown(raw: str) -> tuple[str, str | None]:
    """Text without front matter, ERB tags, comments, scripts and HTML tags (code keeps all of them); stated title.

    Malformed front matter stays in the text.
    """
    body, title = _front_matter(raw)
    pieces = [
        body[start:end] if is_code else _BLANK_LINES.sub("\n\n", _strip_tags(_strip_regions(body[start:end])))
        for start, end, is_code in split_fences(body)
    ]
    return "".join(pieces), title


def _front_matter(raw: str) -> tuple[str, str | None]:
    """The text after the front matter, and the front matter's title."""
    first_line, _, rest = raw.partition("\n")
    if first_line.rstrip() != "---":
        return raw, None
    closing = re.compile(r"^(?:---|\.\.\.)[ \t]*$\n?", re.MULTILINE).search(rest[:_MAX_FRONT_MATTER_CHARS])
    if closing is None:
        return raw, None
    try:
        # BaseLoader builds strings, lists and mappings only, so no value can be a surprise.
        fields = yaml.load(rest[: closing.start()], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return raw, None
    if not isinstance(fields, dict):
        return raw, None
    title = fields.get("title")
    return rest[closing.end() :], title.strip() or None if isinstance(title, str) else None


def _strip_regions(text: str) -> str:
    """Drop comments, scripts, styles and ERB tags; of an ERB tag the arguments that readers see stay."""
    find_end = _Ends(text)

    def replace(match: re.Match[str]) -> tuple[str, int]:
        opening = match[0].lower()
        closer = {"<%": "%>", "<!--": "-->"}.get(opening) or f"</{opening[1:]}"
        end = find_end(closer, match.end())
        if end < 0:
            return match[0], match.end()
        if match["raw"]:
            return "", text.find(">", end) + 1 or len(text)
        return _shown_arguments(text[match.end() : end]) if opening == "<%" else "", end + len(closer)

    return _replace_outside_code(text, _REGION, replace)


def _shown_arguments(erb: str) -> str:
    values = [(double or single).replace("\\", "") for double, single in _SHOWN_ARGUMENT.findall(erb)]
    return "\n".join(["", *values, ""]) if values else ""


def _strip_tags(text: str) -> str:
    """Drop HTML tags and keep what they enclose; resolve entities."""

    def replace(match: re.Match[str]) -> tuple[str, int]:
        if match["entity"]:
            return html.unescape(match[0]), match.end()
        return _in_place_of(match["tag"].lower(), is_closing=bool(match["closing"])), match.end()

    return _replace_outside_code(text, _TAG, replace)


def _in_place_of(tag: str, *, is_closing: bool) -> str:
    if tag in _HEADINGS:
        return "\n\n" if is_closing else "\n\n" + "#" * int(tag[1]) + " "
    if tag == "li":
        return "" if is_closing else "\n- "
    if tag == "pre":
        return "\n```\n"
    if tag in ("td", "th"):
        return " "
    return "\n" if tag == "br" or tag in _BLOCKS else ""


def _replace_outside_code(text: str, pattern: re.Pattern[str], replace: _Replace) -> str:
    """Replace each match that is not in a code span; `replace` gives the new text and where to go on."""
    spans = _CodeSpans(text)
    pieces: list[str] = []
    position = 0
    while match := pattern.search(text, position):
        pieces.append(text[position : match.start()])
        if match["ticks"]:
            kept_from, position = match.start(), spans.end_of(match)
            pieces.append(text[kept_from:position])
        else:
            new, position = replace(match)
            pieces.append(new)
    pieces.append(text[position:])
    return "".join(pieces)


class _CodeSpans:
    """Where a code span that begins with a run of backticks ends: at the next run of the same length."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._runs: defaultdict[int, list[int]] = defaultdict(list)
        for run in re.finditer("`+", text):
            self._runs[len(run[0])].append(run.start())

    def end_of(self, opening: re.Match[str]) -> int:
        """The end of the span, or of the backticks alone where nothing closes them within the paragraph."""
        length, after = len(opening[0]), opening.end()
        runs = self._runs[length]
        position = bisect_left(runs, after)
        if position == len(runs) or self._text.find("\n\n", after, runs[position]) >= 0:
            return after
        return runs[position] + length


class _Ends:
    """`find` that remembers what does not occur any more, so that many openings without an end stay linear."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lowered = text if text.isascii() and text == text.lower() else _ascii_lower(text)
        self._absent: set[str] = set()

    def __call__(self, closer: str, start: int) -> int:
        if closer in self._absent:
            return -1
        end = self._lowered.find(closer, start)
        if end < 0:
            self._absent.add(closer)
        return end


def _ascii_lower(text: str) -> str:
    # str.lower changes the length of some characters, and with it every offset behind them.
    return text.translate({ord("A") + i: ord("a") + i for i in range(26)})
