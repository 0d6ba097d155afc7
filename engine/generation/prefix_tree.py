"""Computed beginnings of prompts, shared between requests: a tree with one KV block of 16 tokens per node.

A path from a root spells tokens; its nodes hold their keys and values. A root belongs to one PrefixKey, so a model,
adapter or tenant can never meet another's. Children are found by the 16 tokens themselves: nothing relies on hashes.
Source: RadixAttention, SGLang, arXiv:2312.07104; eviction: RAGCache, arXiv:2404.12457.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import count

from engine.generation.block_pool import BlockPool
from engine.generation.sequence import BLOCK_TOKENS, PrefixKey

Tokens = tuple[int, ...]
# Blocks of context at which attending costs as much as the rest of computing a token: the price of a block at depth d
# is 1 + d / this. For the models served here it lies between 60 and 300 blocks; the order it gives hardly changes.
_ATTENTION_DEPTH = 128


class Node:
    """One block. `num_users` sequences have it in their block tables; a parent never has fewer than its child."""

    __slots__ = ("block", "children", "depth", "is_pinned", "num_hits", "num_users", "parent", "priority", "tokens")

    def __init__(self, parent: Node | None, tokens: Tokens, block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.children: dict[Tokens, Node] = {}
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.num_users = 0
        self.num_hits = 0
        self.is_pinned = False
        self.priority = 0.0


class PrefixTree:
    """Owns the blocks of its nodes; unused ones give way, the cheapest to compute again and least asked for first."""

    def __init__(self, pool: BlockPool, *, max_pinned_blocks: int = 0) -> None:
        self._pool = pool
        self._max_pinned_blocks = max_pinned_blocks
        self._roots: dict[PrefixKey, Node] = {}
        self._clock = 0.0  # priority of the last block that gave way: what is used from now on ranks above it
        self._heap: list[tuple[float, int, Node]] = []  # of leaves; entries whose node changed are skipped
        self._serial = count()
        self.num_blocks = 0
        self.num_pinned = 0
        self.num_idle = 0  # blocks that no sequence uses
        self._num_idle_pinned = 0

    @property
    def num_evictable(self) -> int:
        """Blocks that `evict` could free."""
        return self.num_idle - self._num_idle_pinned

    def root(self, key: PrefixKey) -> Node:
        """Where sequences with this key begin. Has no block."""
        if key not in self._roots:
            self._roots[key] = Node(None, (), -1)
        return self._roots[key]

    def match(self, node: Node, tokens: Sequence[int], max_tokens: int) -> list[Node]:
        """The nodes below `node` that hold the next full blocks of `tokens`, none beyond its first `max_tokens`."""
        found: list[Node] = []
        position = node.depth * BLOCK_TOKENS
        while position + BLOCK_TOKENS <= max_tokens:
            child = node.children.get(tuple(tokens[position : position + BLOCK_TOKENS]))
            if child is None:
                break
            found.append(child)
            node = child
            position += BLOCK_TOKENS
        return found

    def use(self, node: Node) -> None:
        """A sequence that has all of the node's ancestors takes it into its block table."""
        if node.num_users == 0:
            self.num_idle -= 1
            self._num_idle_pinned -= node.is_pinned
        node.num_users += 1
        node.num_hits += 1

    def extend(self, parent: Node, tokens: Tokens, block: int) -> Node:
        """Give a sequence's computed block to the tree, which the sequence goes on using.

        Returns the node of `tokens` below `parent`. Where that exists with another block, the sequence uses the tree's
        and its own `block` is the caller's to free.
        """
        child = parent.children.get(tokens)
        if child is None:
            child = parent.children[tokens] = Node(parent, tokens, block)
            self.num_blocks += 1
            self.num_idle += 1
        self.use(child)
        return child

    def release(self, node: Node) -> None:
        """A sequence gives up the path from the root to `node`."""
        step: Node | None = node
        while step is not None and step.parent is not None:
            step.num_users -= 1
            if step.num_users == 0:
                self.num_idle += 1
                self._num_idle_pinned += step.is_pinned
                step.priority = self._clock + step.num_hits * (1 + step.depth / _ATTENTION_DEPTH)
                self._offer(step)
            step = step.parent

    def evict(self, num_blocks: int) -> int:
        """Free up to that many blocks to the pool, leaves first; returns how many."""
        num_freed = 0
        while num_freed < num_blocks and self._heap:
            priority, _, node = heapq.heappop(self._heap)
            if not self._is_offered(node) or node.priority != priority:
                continue
            self._clock = max(self._clock, priority)
            self._remove(node)
            num_freed += 1
        return num_freed

    def pin(self, node: Node) -> bool:
        """Keep the path to `node` whatever happens. False, and nothing is pinned, above the limit."""
        path = [step for step in _path(node) if not step.is_pinned]
        if self.num_pinned + len(path) > self._max_pinned_blocks:
            return False
        for step in path:
            step.is_pinned = True
            self._num_idle_pinned += step.num_users == 0
        self.num_pinned += len(path)
        return True

    def drop(self, key: PrefixKey) -> None:
        """Forget what nobody uses of a key, pinned or not: its model or adapter is gone."""
        root = self._roots.get(key)
        if root is None:
            return
        for node in sorted(_below(root), key=lambda node: -node.depth):
            if node.is_pinned:
                node.is_pinned = False
                self.num_pinned -= 1
                self._num_idle_pinned -= node.num_users == 0
            if node.num_users == 0 and not node.children:
                self._remove(node)
        if not root.children:
            del self._roots[key]

    def drop_adapter(self, adapter: str) -> None:
        """Forget what nobody uses of an adapter, whichever tenant's it is."""
        for key in [key for key in self._roots if key.adapter == adapter]:
            self.drop(key)

    def nodes(self) -> Iterator[Node]:
        """For checks."""
        for root in self._roots.values():
            yield from _below(root)

    def check(self) -> None:
        """Raises: AssertionError naming what is wrong with the tree."""
        nodes = list(self.nodes())
        blocks = [node.block for node in nodes]
        assert len(set(blocks)) == len(blocks) == self.num_blocks, "a block is in the tree twice, or miscounted"
        evictable = sum(node.num_users == 0 and not node.is_pinned for node in nodes)
        assert evictable == self.num_evictable, f"{self.num_evictable} blocks counted evictable, {evictable} are"
        pinned = sum(node.is_pinned for node in nodes)
        assert pinned == self.num_pinned <= self._max_pinned_blocks, f"{pinned} pinned, counted {self.num_pinned}"
        for node in nodes:
            for child in node.children.values():
                assert child.parent is node and child.num_users <= node.num_users, "a child outlives its parent"
                assert node.is_pinned or not child.is_pinned, "a pinned node hangs below one that is not"

    def _offer(self, node: Node) -> None:
        if not self._is_offered(node):
            return
        heapq.heappush(self._heap, (node.priority, next(self._serial), node))
        if len(self._heap) > 2 * self.num_blocks + 64:  # mostly entries of nodes that were used again
            self._heap = [entry for entry in self._heap if self._is_offered(entry[2]) and entry[0] == entry[2].priority]
            heapq.heapify(self._heap)

    @staticmethod
    def _is_offered(node: Node) -> bool:
        return node.num_users == 0 and not node.children and not node.is_pinned and node.parent is not None

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        node.parent = None
        self._pool.free([node.block])
        self.num_blocks -= 1
        self.num_idle -= 1
        if parent.parent is not None:
            self._offer(parent)


def _path(node: Node) -> list[Node]:
    path: list[Node] = []
    while node.parent is not None:
        path.append(node)
        node = node.parent
    return path


def _below(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()
