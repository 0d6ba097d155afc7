"""Choose the sequences of the next step, and keep the books of KV blocks. No torch, clock or I/O.

A step is {sequence: number of new tokens}: a decode is one and its drafts, a prompt chunk many.
Policy: decodes first, then chunks of admitted prompts, then admission in order of arrival, within the budget of a step
(Sarathi-Serve, arXiv:2403.02310). Where blocks run out, the youngest sequence is set back: what it computed stays in
the prefix tree as long as there is room, so it usually finds most of it again.
A branch goes on where another sequence ends: it shares that one's blocks, and is a prompt chunk to a step.
A sequence with an adapter runs while the adapter has a slot; who gets one is the SlotTable's policy, and those that
wait for one, or for their adapter to be read, are passed by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from itertools import count

from engine.errors import Overloaded, PromptTooLong
from engine.generation.adapters.slots import SlotTable
from engine.generation.block_pool import BlockPool
from engine.generation.prefix_tree import Node, PrefixTree
from engine.generation.sequence import BLOCK_TOKENS, Sequence, num_blocks_for
from engine.generation.step import Step, TokenBudget

# Branches that run at once: as many as fill a step, and fewer where others are there.
MAX_BRANCHES = 256
MAX_BRANCHES_BESIDE_OTHERS = 32


class Scheduler:
    """Continuous batching (Orca, OSDI 2022) over a fixed pool of KV blocks. One thread calls it."""

    def __init__(
        self,
        *,
        num_blocks: int,
        max_num_seqs: int,
        max_waiting: int,
        budget: TokenBudget,
        max_pinned_blocks: int = 0,
        slots: SlotTable | None = None,
        is_loaded: Callable[[str], bool] = lambda digest: True,
    ) -> None:
        """`slots` are the places of adapters; `is_loaded` tells whether an adapter, by digest, can be put into one."""
        self._pool = BlockPool(num_blocks)
        self._tree = PrefixTree(self._pool, max_pinned_blocks=max_pinned_blocks)
        self._max_blocks_each = num_blocks - max_pinned_blocks
        self._max_num_seqs = max_num_seqs
        self._max_waiting = max_waiting
        self._budget = budget
        self._waiting: deque[Sequence] = deque()  # by arrival
        self._running: list[Sequence] = []  # by arrival
        self._arrivals = count()
        self._slots = slots or SlotTable(1)
        self._is_loaded = is_loaded
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none yet, or no more."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of prompts that are not computed, of sequences that wait or have begun."""
        begun = sum(sequence.num_new for sequence in self._running if not sequence.is_decoding)
        return begun + sum(sequence.num_new for sequence in self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute; `next_step` may first have to make room for a fork."""
        return bool(self._running) or any(self._can_run(sequence) for sequence in self._waiting)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that running sequences use."""
        return self._pool.num_blocks - self._pool.num_free - self._tree.num_idle

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises: PromptTooLong when even alone it could not be completed, Overloaded when the queue is full.
        """
        if num_blocks_for(sequence.max_total_tokens) > self._max_blocks_each:
            most = self._max_blocks_each * BLOCK_TOKENS
            raise PromptTooLong(
                sequence.num_prompt_tokens, sequence.max_total_tokens - sequence.num_prompt_tokens, most
            )
        if sum(not each.is_branch for each in self._waiting) >= self._max_waiting:
            raise Overloaded("the generator's queue", self._max_waiting, "generator.max_queued")
        sequence.arrival = next(self._arrivals)
        sequence.status = "waiting"
        self._waiting.append(sequence)

    def fork(self, wanted: SequenceOf[tuple[Sequence, Sequence]]) -> tuple[int, list[tuple[int, int]]]:
        """Let branches run from where their parents, first of each pair, stand: in order, as far as there is room.

        All tokens of a parent are computed, and its branch's begin with them. A parent keeps its blocks meanwhile, and
        is set back for lack of room like any other; when it is computed anew, it can be forked again.
        Returns how many run, and the KV blocks to copy before the next step, (from, to).
        """
        active = [sequence for sequence in self._running if sequence.num_new]
        num_branches = sum(sequence.is_branch for sequence in active)
        has_others = num_branches < len(active) or bool(self._waiting)
        most = (MAX_BRANCHES_BESIDE_OTHERS if has_others else MAX_BRANCHES) - num_branches
        promised = sum(map(_num_promised, active))
        copies: list[tuple[int, int]] = []
        num_forked = 0
        for parent, branch in wanted[: max(most, 0)]:
            assert parent.status == "running" and parent.num_new == 0 and parent.node is not None
            promised += num_blocks_for(len(branch.tokens)) - parent.num_tree_blocks
            is_alone = not active and num_forked == 0
            if not is_alone and self._pool.num_free + self._tree.num_evictable < promised:
                break
            partial = parent.blocks[parent.num_tree_blocks :]
            if len(partial) > self._pool.num_free and self._tree.evict(len(partial)) == 0:
                break
            own = self._pool.allocate(len(partial))
            promised -= len(own)
            self._tree.use_path(parent.node)
            branch.blocks = parent.blocks[: parent.num_tree_blocks] + own
            branch.node, branch.num_tree_blocks = parent.node, parent.num_tree_blocks
            branch.num_computed, branch.slot, branch.arrival = parent.num_computed, parent.slot, parent.arrival
            branch.status = "running"
            self._running.insert(self._running.index(parent) + 1, branch)
            copies += zip(partial, own, strict=True)
            num_forked += 1
        return num_forked, copies

    def next_step(self) -> Step | None:
        """Admit, chunk or set back, then return the step; None when there is nothing to do. Touches no tensor."""
        self._slots.tick()
        self._displace()
        return self._compose()

    def _compose(self) -> Step | None:
        chosen: list[Sequence] = []
        num_tokens: list[int] = []
        for sequence in list(self._running):
            # The test of the status: an older one may have set it back just now.
            if sequence.is_decoding and sequence.status == "running" and self._make_room(sequence):
                chosen.append(sequence)
        # After everybody's next token has its block, so that no draft sets anybody back.
        num_tokens += [1 + self._room_for_drafts(sequence) for sequence in chosen]
        room = self._budget.prefill_tokens(sum(num_tokens))
        computing: set[tuple[int, tuple[int, ...]]] = set()
        prefilling = [sequence for sequence in self._running if not sequence.is_decoding]
        for sequence in prefilling:
            room -= self._add_chunk(sequence, room, computing, chosen, num_tokens)
        room -= self._admit(room, computing, chosen, num_tokens)
        if not chosen and self._running:
            # Prompts hold all blocks and none has enough: the youngest gives way to the others.
            self._preempt(self._running[-1])
            if self._running and not any(sequence.num_new for sequence in self._running):
                return None  # all wait to be forked, which comes before what was set back
            return self._compose()
        return Step(tuple(chosen), tuple(num_tokens)) if chosen else None

    def step_after(self, step: Step) -> Step | None:
        """The step behind one of plain decodes that is not finished, as if no token of that one ended a sequence.

        Those whose length ends with it are left out. None where nobody is left, where somebody who waits may come in or
        another one runs, and where blocks lack, so that `next_step` has to decide when `step` is finished.
        """
        left = [
            sequence
            for sequence in step.sequences
            if sequence.status == "running" and len(sequence.tokens) + 1 < sequence.max_total_tokens
        ]
        known = set(step.sequences)
        if not left or any(sequence not in known for sequence in self._running) or self._may_admit():
            return None
        for sequence in left:
            missing = num_blocks_for(sequence.num_computed + 2) - len(sequence.blocks)
            if missing > self._pool.num_free and self._tree.evict(missing) == 0:
                return None
            sequence.blocks += self._pool.allocate(max(missing, 0))
        self._slots.tick()
        return Step(tuple(left), (1,) * len(left), is_ahead=True)

    def decoding(self) -> list[Sequence]:
        """The running sequences where all decode and nobody waits; else none: prompts come first then."""
        if self._waiting or not all(sequence.is_decoding for sequence in self._running):
            return []
        return self._running

    def finish_step(self, step: Step, new_tokens: SequenceOf[SequenceOf[int]]) -> None:
        """Note that a step was computed, and append the tokens chosen after it: none while a prompt is incomplete, else
        the drafts that were right and one more.

        Blocks that became full enter the tree at once, so that others find them while this one still runs.
        """
        for sequence, num_tokens, tokens in zip(step.sequences, step.num_tokens, new_tokens, strict=True):
            if sequence.status != "running":
                continue
            # Keys and values after a wrong draft are left where they are, to be overwritten.
            num_wrong = max(len(sequence.drafts) + 1 - len(tokens), 0) if sequence.drafts else 0
            sequence.tokens += tokens
            sequence.drafts = []
            sequence.num_computed += num_tokens - num_wrong
            self._commit(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence in any state; its full blocks stay in the tree for others. Calling it again does nothing."""
        if sequence.status == "waiting":
            self._waiting.remove(sequence)
        elif sequence.status == "running":
            self._running.remove(sequence)
            self._give_up_blocks(sequence)
        sequence.status = "finished"

    def expired(self, now_s: float) -> list[Sequence]:
        """Waiting and running sequences whose deadline has passed; the caller ends them."""
        return [
            sequence
            for sequence in (*self._running, *self._waiting)
            if sequence.deadline_s is not None and sequence.deadline_s <= now_s
        ]

    def preempt_youngest(self) -> None:
        """Set the youngest running sequence back, as if blocks had run out."""
        if self._running:
            self._preempt(self._running[-1])

    def forget_adapter(self, digest: str) -> None:
        """An adapter that no sequence will use again leaves its slot, and what was computed with it the tree."""
        self._slots.release(digest)
        self._tree.drop_adapter(digest)

    def check(self) -> None:
        """Every block is free, in the tree or owned by one sequence. Raises: AssertionError naming the leak."""
        self._tree.check()
        nodes = {id(node): node for node in self._tree.nodes()}
        users = dict.fromkeys(nodes, 0)
        owned: list[int] = []
        for sequence in self._running:
            assert sequence.status == "running", f"{sequence.id} runs with status {sequence.status}"
            num_tree = sequence.num_tree_blocks
            node = sequence.node
            assert node is not None and node.depth == num_tree, f"{sequence.id} counts {num_tree} blocks of the tree"
            while node.parent is not None:
                users[id(node)] += 1
                assert sequence.blocks[node.depth - 1] == node.block, f"{sequence.id} has a block of its own for a node"
                node = node.parent
            owned += sequence.blocks[num_tree:]
            assert sequence.num_computed <= len(sequence.blocks) * BLOCK_TOKENS, f"{sequence.id} lacks blocks"
            assert num_tree == sequence.num_computed // BLOCK_TOKENS, f"{sequence.id} keeps full blocks to itself"
            slot = self._slots.slot_of(sequence.key.adapter) if sequence.key.adapter else -1
            assert sequence.slot == slot, f"{sequence.id} runs in slot {sequence.slot}, its adapter has {slot}"
        for sequence in self._waiting:
            assert sequence.status == "waiting" and not sequence.blocks, f"{sequence.id} waits with blocks"
        for key, number in users.items():
            assert nodes[key].num_users == number, f"block {nodes[key].block}: {number} users, counted otherwise"
        free = self._pool.free_blocks()
        everything = sorted([*free, *owned, *(node.block for node in nodes.values())])
        assert everything == list(range(self._pool.num_blocks)), (
            f"{len(free)} free + {len(nodes)} in the tree + {len(owned)} owned is not {self._pool.num_blocks} blocks"
        )

    def _add_chunk(
        self,
        sequence: Sequence,
        room: int,
        computing: set[tuple[int, tuple[int, ...]]],
        chosen: list[Sequence],
        num_tokens: list[int],
    ) -> int:
        """Put the next chunk of an admitted prompt into the step if it fits; returns its tokens."""
        if room <= 0:
            return 0
        self._take_from_tree(sequence)
        node, start = sequence.node, sequence.num_computed
        assert node is not None
        first = (id(node), tuple(sequence.tokens[start : start + BLOCK_TOKENS]))
        if len(first[1]) == BLOCK_TOKENS and first in computing:
            return 0  # computed in this very step for another: the next step finds it in the tree
        stop = self._chunk_end(sequence, room)
        if stop <= start:
            return 0
        sequence.blocks += self._pool.allocate(max(num_blocks_for(stop) - len(sequence.blocks), 0))
        computing.add(first)
        chosen.append(sequence)
        num_tokens.append(stop - start)
        return stop - start

    def _chunk_end(self, sequence: Sequence, room: int) -> int:
        """Where the next chunk ends: with the tokens, or at the last full block that budget and memory allow."""
        start, total = sequence.num_computed, len(sequence.tokens)
        missing = num_blocks_for(min(start + room, total)) - len(sequence.blocks)
        if missing > self._pool.num_free:
            self._tree.evict(missing - self._pool.num_free)
        limit = min(start + room, (len(sequence.blocks) + self._pool.num_free) * BLOCK_TOKENS)
        if limit >= total:
            return total
        return limit // BLOCK_TOKENS * BLOCK_TOKENS

    def _admit(
        self,
        room: int,
        computing: set[tuple[int, tuple[int, ...]]],
        chosen: list[Sequence],
        num_tokens: list[int],
    ) -> int:
        """Let waiting sequences in, in order of arrival; returns the tokens that they put into the step."""
        used = 0
        for sequence in list(self._waiting):
            if used >= room or self._is_batch_full():
                break
            if not self._can_run(sequence):
                continue
            if not self._fits(sequence):
                break
            slot = self._claim_slot(sequence)
            if slot is None:
                continue
            self._waiting.remove(sequence)
            sequence.slot = slot
            sequence.status = "running"
            sequence.node = self._tree.root(sequence.key)
            position = len(self._running)
            while position and self._running[position - 1].arrival > sequence.arrival:
                position -= 1
            self._running.insert(position, sequence)
            if sequence.num_preemptions == 0:
                self.prompt_tokens += sequence.num_prompt_tokens
            used += self._add_chunk(sequence, room - used, computing, chosen, num_tokens)
        return used

    def _may_admit(self) -> bool:
        """Whether `_admit` might let somebody in; only a slot could still be missing."""
        if self._is_batch_full():
            return False
        first = next((sequence for sequence in self._waiting if self._can_run(sequence)), None)
        return first is not None and self._fits(first)

    def _is_batch_full(self) -> bool:
        return sum(not sequence.is_branch for sequence in self._running) >= self._max_num_seqs

    def _can_run(self, sequence: Sequence) -> bool:
        """Whether there is nothing to wait for but room."""
        return not sequence.key.adapter or self._is_loaded(sequence.key.adapter)

    def _claim_slot(self, sequence: Sequence) -> int | None:
        """The slot of a sequence's adapter, -1 without one; None while running sequences use all slots."""
        adapter = sequence.key.adapter
        if not adapter:
            return -1
        wanted = {other.key.adapter for other in self._waiting}
        return self._slots.claim(adapter, in_use={other.key.adapter for other in self._running}, wanted=wanted)

    def _displace(self) -> None:
        """Set sequences back whose adapter's slot an older one waits for, as far as the SlotTable lets it."""
        oldest: dict[str, int] = {}
        for sequence in self._running:
            if sequence.key.adapter:
                oldest.setdefault(sequence.key.adapter, sequence.arrival)
        if not oldest or self._is_batch_full() or self._slots.has_vacancy(oldest):
            return
        for sequence in self._waiting:
            adapter = sequence.key.adapter
            if not adapter or adapter in oldest or not self._can_run(sequence):
                continue
            victim = self._slots.displaced_by(sequence.arrival, oldest)
            if victim is not None and self._fits(sequence):
                for each in [each for each in self._running if each.key.adapter == victim]:
                    self._preempt(each)
            return

    def _fits(self, sequence: Sequence) -> bool:
        """Whether the whole prompt would find room beside what the running sequences still need, and one block each."""
        known = self._matching(sequence, self._tree.root(sequence.key))
        num_idle = sum(node.num_users == 0 and not node.is_pinned for node in known)
        available = self._pool.num_free + self._tree.num_evictable - num_idle
        needed = num_blocks_for(len(sequence.tokens)) - len(known)
        promised = sum(map(_num_promised, self._running))
        return available >= needed + promised

    def _take_from_tree(self, sequence: Sequence) -> None:
        """Use what the tree holds of the prompt's next blocks, by now also from requests that came later."""
        node = sequence.node
        assert node is not None
        if sequence.num_computed != sequence.num_tree_blocks * BLOCK_TOKENS:
            return
        found = self._matching(sequence, node)
        if not found:
            return
        for node in found:
            self._tree.use(node)
        own = sequence.blocks[sequence.num_tree_blocks :]
        replaced = own[: len(found)]
        sequence.blocks[sequence.num_tree_blocks :] = [node.block for node in found] + own[len(found) :]
        self._pool.free(replaced)
        sequence.num_tree_blocks += len(found)
        sequence.num_computed += len(found) * BLOCK_TOKENS
        sequence.node = found[-1]
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens += len(found) * BLOCK_TOKENS
            self.cached_tokens += len(found) * BLOCK_TOKENS

    def _matching(self, sequence: Sequence, node: Node) -> list[Node]:
        """What the tree holds next. One token is always left to compute: its logits choose the next one."""
        most = sequence.num_unscored if sequence.needs_prompt_logits else len(sequence.tokens) - 1
        return self._tree.match(node, sequence.tokens, most)

    def _make_room(self, sequence: Sequence) -> bool:
        """A block for a decoding sequence's next token where it needs one; False if it was set back itself."""
        while num_blocks_for(sequence.num_computed + 1) > len(sequence.blocks):
            if self._pool.num_free or self._tree.evict(1):
                sequence.blocks += self._pool.allocate(1)
                continue
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _room_for_drafts(self, sequence: Sequence) -> int:
        """Keep as many of the drafts as find blocks without evicting anything or setting anybody back."""
        most = sequence.max_total_tokens - len(sequence.tokens) - 1
        while len(sequence.drafts) > max(most, 0):
            sequence.drafts.pop()
        needed = num_blocks_for(len(sequence.tokens) + len(sequence.drafts)) - len(sequence.blocks)
        sequence.blocks += self._pool.allocate(max(min(needed, self._pool.num_free), 0))
        del sequence.drafts[max(len(sequence.blocks) * BLOCK_TOKENS - len(sequence.tokens), 0) :]
        return len(sequence.drafts)

    def _preempt(self, sequence: Sequence) -> None:
        sequence.drafts = []
        self._running.remove(sequence)
        self._give_up_blocks(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        sequence.status = "waiting"
        position = 0
        while position < len(self._waiting) and self._waiting[position].arrival < sequence.arrival:
            position += 1
        self._waiting.insert(position, sequence)

    def _commit(self, sequence: Sequence) -> None:
        """Move blocks that became full to the tree; where it has their content already, use its and free our own."""
        node = sequence.node
        assert node is not None
        while (sequence.num_tree_blocks + 1) * BLOCK_TOKENS <= sequence.num_computed:
            index = sequence.num_tree_blocks
            tokens = tuple(sequence.tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
            node = self._tree.extend(node, tokens, sequence.blocks[index])
            if node.block != sequence.blocks[index]:
                self._pool.free([sequence.blocks[index]])
                sequence.blocks[index] = node.block
            sequence.num_tree_blocks += 1
            sequence.node = node
            if sequence.num_tree_blocks == sequence.num_pinned_tokens // BLOCK_TOKENS:
                self._tree.pin(node)

    def _give_up_blocks(self, sequence: Sequence) -> None:
        assert sequence.node is not None
        self._pool.free(sequence.blocks[sequence.num_tree_blocks :])
        self._tree.release(sequence.node)
        sequence.blocks = []
        sequence.num_tree_blocks = 0
        sequence.node = None


def _num_promised(sequence: Sequence) -> int:
    """Blocks that a running sequence still needs for what is known of it, and one to go on where it will."""
    return num_blocks_for(len(sequence.tokens)) - len(sequence.blocks) + (not sequence.is_branch)
