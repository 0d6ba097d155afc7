"""The tree of continuations: every token once, every continuation at its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.generation.scoring.trie import Node, build_tree

CONTINUATIONS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)


def spelled(node: Node, path: tuple[int, ...] = ()) -> dict[int, tuple[int, ...]]:
    """Each continuation by index, as the tree spells it."""
    found = dict.fromkeys(node.ends, path)
    for edge in node.edges:
        if edge.node is None:
            found |= dict.fromkeys(edge.ends, (*path, edge.first))
        else:
            assert edge.node.tokens[0] == edge.first and not edge.ends
            found |= spelled(edge.node, path + edge.node.tokens)
    return found


@given(CONTINUATIONS)
def test_the_tree_spells_every_continuation(continuations):
    assert spelled(build_tree(continuations)) == dict(enumerate(continuations))


@given(CONTINUATIONS)
def test_what_is_computed_is_each_proper_beginning_once(continuations):
    beginnings = {tokens[:length] for tokens in continuations for length in range(1, len(tokens))}
    assert build_tree(continuations).num_tokens == len(beginnings)


def test_labels_of_one_token_need_no_computing():
    tree = build_tree([(1,), (2,), (3,)])
    assert tree.num_tokens == 0 and [edge.ends for edge in tree.edges] == [(0,), (1,), (2,)]
