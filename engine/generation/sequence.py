"""One request as the scheduler sees it: tokens, and the KV blocks that hold what was computed of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from engine.generation.prefix_tree import Node

BLOCK_TOKENS = 16


class PrefixKey(NamedTuple):
    """Whose keys and values these are: content digests of model and adapter, never their names, and a tenant's salt.

    Equal tokens under unequal keys share nothing.
    """

    model: str
    adapter: str
    salt: str


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` are prompt, then output. What follows `drafts` belongs to the scheduler.

    `needs_prompt_logits`: the logits at every prompt position are wanted, so nothing of the prompt may come from the
    tree. `num_pinned_tokens`: leading tokens whose blocks are to stay in the tree. `deadline_s` is on the caller's
    clock. `drafts`: guesses of what follows `tokens`, computed in the next step where there is room. `blocks` is the
    block table; its first `num_tree_blocks` belong to the tree and `node` is the last of those. `slot` is its adapter's
    while it runs; -1 for none.
    """

    id: str
    tokens: list[int]
    num_prompt_tokens: int
    max_total_tokens: int
    key: PrefixKey
    deadline_s: float | None
    needs_prompt_logits: bool = False
    num_pinned_tokens: int = 0
    drafts: list[int] = field(default_factory=list)
    status: Literal["new", "waiting", "running", "finished"] = "new"
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    num_tree_blocks: int = 0
    node: Node | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    arrival: int = 0
    slot: int = -1

    @property
    def num_new(self) -> int:
        """Tokens whose keys and values are not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether only the latest output token is not computed. After a preemption the output is a prompt again."""
        return self.num_computed >= self.num_prompt_tokens and self.num_new == 1


def num_blocks_for(num_tokens: int) -> int:
    """KV blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_TOKENS)
