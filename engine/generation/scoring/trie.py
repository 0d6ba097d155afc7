"""The continuations of one prompt as a tree, whose every token is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """`first` follows; then `node`, or nothing has to be computed and the continuations `ends` end with it."""

    first: int
    ends: tuple[int, ...]
    node: Node | None


@dataclass(frozen=True, slots=True)
class Node:
    """Tokens to compute in one run, the continuations (by index) that end with the last of them, and what follows.

    The first of the `tokens` is that of the edge which leads here. A continuation's last token needs no computing.
    """

    tokens: Tokens
    ends: tuple[int, ...]
    edges: tuple[Edge, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute here and below."""
        return len(self.tokens) + sum(edge.node.num_tokens for edge in self.edges if edge.node is not None)


def build_tree(continuations: Sequence[Tokens]) -> Node:
    """The root, which has no tokens of its own. Every continuation has at least one token; equal ones may occur."""
    return Node((), (), _edges(list(enumerate(continuations))))


def _edges(tails: list[tuple[int, Tokens]]) -> tuple[Edge, ...]:
    groups: dict[int, list[tuple[int, Tokens]]] = {}
    for index, tokens in tails:
        groups.setdefault(tokens[0], []).append((index, tokens))
    return tuple(_edge(first, group) for first, group in groups.items())


def _edge(first: int, group: list[tuple[int, Tokens]]) -> Edge:
    shared = group[0][1]
    for _, tokens in group:
        shared = _common(shared, tokens)
    ends = tuple(index for index, tokens in group if len(tokens) == len(shared))
    rest = [(index, tokens[len(shared) :]) for index, tokens in group if len(tokens) > len(shared)]
    if rest:
        return Edge(first, (), Node(shared, ends, _edges(rest)))
    if len(shared) == 1:
        return Edge(first, ends, None)
    return Edge(first, (), Node(shared[:-1], (), (Edge(shared[-1], ends, None),)))


def _common(a: Tokens, b: Tokens) -> Tokens:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]
