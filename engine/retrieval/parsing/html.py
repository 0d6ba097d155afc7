"""HTML rendered to Markdown-like text, so that headings, lists and code keep their meaning for the chunker. Runs in a
parser's process: markup can be crossed in ways that make the tree deep, or attributes many, and that take too long."""

from __future__ import annotations

import re
from collections import Counter

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.text import ParsedDocument, decode, from_markdown

# Parsing time grows with the product of depth and size, and unclosed formatting is copied into every later block:
# both are bounded before a tree is built.
_MAX_DEPTH = 512
_MAX_FORMATTING_COPIES = 2_000_000
_FORMATTING = frozenset("a b big code em font i nobr s small strike strong tt u".split())
_NO_DEPTH = frozenset(
    "area base br col embed hr img input link meta source track wbr "
    "p li dt dd td th tr thead tbody tfoot option optgroup colgroup".split()
)
_ANY_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_DROPPED = frozenset("script style noscript template svg nav footer iframe object head title".split())
_BREAKS = frozenset(
    "address article aside blockquote body dd details div dl dt fieldset figcaption figure form header hr main ol p "
    "section summary table tr ul".split()
)
_PARAGRAPHS = frozenset("blockquote dl ol p table ul".split())
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_SPACES = re.compile(r"\s+")
_BACKTICKS = re.compile("`+")


def parse_html(body: bytes, limits: ParsingLimits) -> ParsedDocument:
    """Markdown-like text of a page (its `<main>` where it has one) without scripts, navigation and footer.

    Raises: UnparsableDocument for tags nested deeper than any page needs, and for bytes that are no text.
    """
    return from_markdown(*_render(decode(body)))


def _render(raw: str) -> tuple[str, str | None]:
    """Text and stated title."""
    _check_nesting(raw)
    try:
        parser = LexborHTMLParser(raw)
    except SelectolaxError:
        # Any markup is HTML of some kind: this parser fails only where it gets no memory.
        raise MemoryError from None
    title_node = parser.css_first("head > title")
    title = _SPACES.sub(" ", title_node.text()).strip() if title_node is not None else ""
    root = parser.css_first("main") or parser.body
    return _Renderer().render(root) if root is not None else "", title or None


def _check_nesting(raw: str) -> None:
    depth = formatting = deepest_formatting = 0
    num_open: Counter[str] = Counter()
    for num_tags, tag in enumerate(_ANY_TAG.finditer(raw), start=1):
        name = tag[2].lower()
        # The parser drops an end tag of what is not open, so it closes nothing here either.
        step = 0 if name in _NO_DEPTH else 1 if not tag[1] else -1 if num_open[name] else 0
        num_open[name] += step
        depth += step
        if name in _FORMATTING:
            formatting += step
            deepest_formatting = max(deepest_formatting, formatting)
        if depth > _MAX_DEPTH or deepest_formatting * num_tags > _MAX_FORMATTING_COPIES:
            raise UnparsableDocument(
                f"tags are nested {depth} deep at character {tag.start()} of the HTML (allowed: {_MAX_DEPTH}, less "
                "where formatting tags stay open in a long page). Close them, or send the page as text/plain.",
                param="body",
            )


class _Renderer:
    """Walks the tree without recursion and writes lines."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._num_line_feeds = 0  # written since the last text

    def render(self, root: LexborNode) -> str:
        node: LexborNode | None = root
        while node is not None:
            child = self._open(node)
            if child is not None:
                node = child
                continue
            self._close(node)
            while node is not None and node.next is None and node.mem_id != root.mem_id:
                node = node.parent
                if node is not None:
                    self._close(node)
            node = None if node is None or node.mem_id == root.mem_id else node.next
        return "".join(self._pieces)

    def _open(self, node: LexborNode) -> LexborNode | None:
        """Write what stands for the node's start; the child to go on with, None for a leaf."""
        tag = node.tag or ""
        if node.is_text_node:
            self._write_text(node.text_content or "")
        elif tag == "pre":
            self._write_code(node.text())
        elif tag == "br":
            self._break(1)
        elif tag in _HEADINGS:
            self._break(2)
            self._write(_HEADINGS[tag])
        elif tag == "li":
            self._break(1)
            self._write("- ")
        elif tag in ("td", "th") and not self._at_line_start():
            self._write(" | ")
        elif tag in _BREAKS and not self._is_item_open():
            self._break(2 if tag in _PARAGRAPHS else 1)
        if node.is_text_node or tag == "pre" or tag in _DROPPED:
            return None
        return node.first_child

    def _close(self, node: LexborNode) -> None:
        if node.tag in _HEADINGS or node.tag in _PARAGRAPHS:
            self._break(2)
        elif node.tag in _BREAKS or node.tag == "li":
            self._break(1)

    def _write_text(self, text: str) -> None:
        words = _SPACES.sub(" ", text)
        if self._at_line_start():
            words = words.lstrip(" ")
            # A paragraph that begins with `#` would read as a heading.
            words = "\\" + words if words.startswith("#") else words
        elif self._pieces[-1].endswith(" "):
            words = words.lstrip(" ")
        if words:
            self._write(words)

    def _write_code(self, code: str) -> None:
        fence = "`" * max(3, 1 + max((len(run) for run in _BACKTICKS.findall(code)), default=0))
        self._break(2)
        self._write(f"{fence}\n{code.strip(chr(10))}\n{fence}")
        self._break(2)

    def _is_item_open(self) -> bool:
        """Whether a list item has begun and has no text yet: a paragraph inside it goes on in its line."""
        return bool(self._pieces) and self._pieces[-1] == "- "

    def _at_line_start(self) -> bool:
        return self._num_line_feeds > 0 or not self._pieces

    def _break(self, num_line_feeds: int) -> None:
        missing = num_line_feeds - self._num_line_feeds
        if missing > 0 and self._pieces:
            self._pieces.append("\n" * missing)
            self._num_line_feeds = num_line_feeds

    def _write(self, text: str) -> None:
        self._pieces.append(text)
        self._num_line_feeds = 0
