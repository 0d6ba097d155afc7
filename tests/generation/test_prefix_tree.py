"""Beginnings of prompts are shared by exact tokens and key, and give way in the right order."""

from __future__ import annotations

import pytest

from engine.generation.block_pool import BlockPool
from engine.generation.prefix_tree import Node, PrefixTree
from engine.generation.sequence import PrefixKey

KEY = PrefixKey("model", "", "")


def tokens(*blocks: int) -> list[int]:
    """One number a block, 16 times."""
    return [number for number in blocks for _ in range(16)]


class Tree(PrefixTree):
    """A tree of its own pool, and sequences that come and go."""

    def __init__(self, num_blocks: int = 16, max_pinned_blocks: int = 0) -> None:
        self.pool = BlockPool(num_blocks)
        super().__init__(self.pool, max_pinned_blocks=max_pinned_blocks)

    def add(self, *blocks: int, key: PrefixKey = KEY) -> Node:
        """A sequence of these blocks runs to its end; returns its last node, still in use."""
        node = self.root(key)
        for number in blocks:
            (own,) = self.pool.allocate(1)
            node = self.extend(node, tuple(tokens(number)), own)
            if node.block != own:
                self.pool.free([own])
        self.check()
        return node

    def known(self, *blocks: int, key: PrefixKey = KEY) -> int:
        """Blocks found of a prompt."""
        return len(self.match(self.root(key), tokens(*blocks), 16 * len(blocks)))


def test_longest_beginning_in_full_blocks_is_found():
    tree = Tree()
    tree.add(1, 2, 3)
    assert tree.known(1, 2, 3, 4) == 3 and tree.known(1, 2, 9) == 2 and tree.known(2) == 0
    assert len(tree.match(tree.root(KEY), tokens(1, 2, 3), 47)) == 2
    assert len(tree.match(tree.root(KEY), [*tokens(1), *[2] * 15], 31)) == 1


@pytest.mark.parametrize("other", [KEY._replace(model="x"), KEY._replace(adapter="x"), KEY._replace(salt="x")])
def test_other_model_adapter_or_salt_finds_nothing(other: PrefixKey):
    tree = Tree()
    tree.add(1, 2)
    assert tree.known(1, 2, key=other) == 0


def test_equal_beginnings_keep_one_copy():
    tree = Tree()
    first, second = tree.add(1, 2, 3), tree.add(1, 2, 4)
    assert tree.num_blocks == 4 and first.parent is second.parent
    assert first.parent is not None and first.parent.num_users == 2


def test_used_blocks_never_give_way():
    tree = Tree(4)
    node = tree.add(1, 2)
    tree.release(tree.add(3, 4))
    assert tree.evict(4) == 2
    assert tree.known(1, 2) == 2 and tree.pool.num_free == 2
    tree.release(node)
    assert tree.evict(4) == 2
    tree.check()


def test_ends_give_way_before_beginnings():
    tree = Tree()
    tree.release(tree.add(1, 2, 3))
    tree.evict(1)
    assert tree.known(1, 2, 3) == 2
    tree.check()


def test_what_was_asked_for_often_outlives_what_was_asked_for_once():
    tree = Tree()
    for _ in range(3):
        tree.release(tree.add(1))
    tree.release(tree.add(2))
    tree.evict(1)
    assert tree.known(1) == 1 and tree.known(2) == 0


def test_old_popularity_fades():
    tree = Tree(4)
    for _ in range(5):
        tree.release(tree.add(1))
    for number in range(2, 60):
        if tree.pool.num_free == 0:
            tree.evict(1)
        tree.release(tree.add(number))
    assert tree.known(1) == 0


def test_expensive_block_outlives_a_cheap_one():
    tree = Tree(200)
    deep = tuple(range(1, 150))
    tree.release(tree.add(*deep))
    tree.release(tree.add(200))
    tree.evict(1)
    assert tree.known(200) == 0 and tree.known(*deep) == 149


def test_pinned_blocks_stay_and_pins_are_limited():
    tree = Tree(8, max_pinned_blocks=2)
    node = tree.add(1, 2)
    other = tree.add(3)
    assert tree.pin(node) and tree.pin(node) and not tree.pin(other)
    tree.release(node)
    tree.release(other)
    assert tree.evict(8) == 1
    assert tree.known(1, 2) == 2
    tree.check()


def test_dropped_key_frees_what_nobody_uses_pinned_or_not():
    tree = Tree(8, max_pinned_blocks=2)
    pinned, used = tree.add(1, 2), tree.add(1, 3)
    tree.pin(pinned)
    tree.release(pinned)
    tree.drop(KEY)
    tree.check()
    assert tree.known(1, 2) == 1 and tree.known(1, 3) == 2
    tree.release(used)
    tree.drop(KEY)
    assert tree.pool.num_free == 8


def test_books_of_many_releases_stay_small():
    tree = Tree(8)
    for _ in range(1000):
        tree.release(tree.add(1, 2))
    assert len(tree._heap) < 100
    assert tree.evict(2) == 2
