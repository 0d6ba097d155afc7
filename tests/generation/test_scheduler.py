"""The scheduler's policy by example, and its books over random histories."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Overloaded, PromptTooLong
from engine.generation.adapters.slots import SlotTable
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import PrefixKey, Sequence
from engine.generation.step import FixedBudget, Step

KEY = PrefixKey("model", "", "")


def scheduler(num_blocks: int = 64, max_batched_tokens: int = 64, **limits: Any) -> Scheduler:
    options: dict[str, Any] = {"max_num_seqs": 8, "max_waiting": 64} | limits
    return Scheduler(num_blocks=num_blocks, budget=FixedBudget(max_batched_tokens), **options)


def sequence(name: str, num_prompt: int, max_new: int = 8, *, first: int | None = None, **fields: object) -> Sequence:
    """A prompt of its own, unless `first` names the token that all its tokens are."""
    drawn = random.Random(name)
    tokens = [drawn.randrange(1000) if first is None else first for _ in range(num_prompt)]
    defaults = {"key": KEY, "deadline_s": None}
    return Sequence(name, tokens, num_prompt, num_prompt + max_new, **(defaults | fields))  # type: ignore[arg-type]


def advance(books: Scheduler, step: Step | None = None) -> dict[str, int]:
    """Run one step, each due sequence being given token 7; complete ones end. Returns {id: tokens of the step}."""
    step = step or books.next_step()
    if step is None:
        return {}
    due = [s.num_computed + n == len(s.tokens) for s, n in zip(step.sequences, step.num_tokens, strict=True)]
    books.finish_step(step, [[7] if is_due else [] for is_due in due])
    for each in step.sequences:
        if len(each.tokens) >= each.max_total_tokens:
            books.finish(each)
    books.check()
    return {each.id: count for each, count in zip(step.sequences, step.num_tokens, strict=True)}


def run_out(books: Scheduler) -> list[dict[str, int]]:
    steps = []
    while step := advance(books):
        steps.append(step)
        assert len(steps) < 5000, "no end"
    return steps


def test_decodes_come_first_and_prompts_fill_the_budget_in_whole_blocks():
    books = scheduler()
    books.add(sequence("a", 20))
    advance(books)
    books.add(sequence("b", 100))
    assert advance(books) == {"a": 1, "b": 48}
    assert advance(books) == {"a": 1, "b": 52}
    assert advance(books) == {"a": 1, "b": 1}


def test_prompts_are_admitted_in_order_of_arrival_and_share_a_step():
    books = scheduler()
    for name, count in (("a", 20), ("b", 20), ("c", 100)):
        books.add(sequence(name, count))
    assert advance(books) == {"a": 20, "b": 20, "c": 16}


def test_no_more_sequences_run_than_allowed():
    books = scheduler(max_num_seqs=2)
    for name in "abc":
        books.add(sequence(name, 5))
    assert set(advance(books)) == {"a", "b"}
    assert (books.num_running, books.num_waiting) == (2, 1)


def test_waiting_prompt_stays_out_while_running_ones_need_the_room():
    books = scheduler(num_blocks=6)
    books.add(sequence("a", 40, 20))
    advance(books)
    books.add(sequence("b", 40))
    assert set(advance(books)) == {"a"}  # 3 blocks and one to grow are a's; 2 are left, b needs 3
    assert books.num_preemptions == 0


def test_scheduler_preempts_the_newest_sequence_when_no_kv_block_is_free():
    books = scheduler(num_blocks=5)
    for name in "ab":
        books.add(sequence(name, 31, 30))
    names = [set(step) for step in run_out(books)]
    assert books.num_preemptions > 0
    first_alone = next(step for step in names if len(step) == 1)
    assert first_alone == {"a"}


def test_preempted_sequence_finds_its_blocks_in_the_tree_again():
    books = scheduler(num_blocks=32)
    kept = sequence("a", 70, 20)
    books.add(kept)
    for _ in range(4):
        advance(books)
    books.preempt_youngest()
    books.check()
    assert kept.blocks == [] and kept.num_preemptions == 1 and len(kept.tokens) == 73
    assert advance(books) == {"a": 9}  # 4 of its 5 blocks are known
    assert len(kept.tokens) == 74


def test_prompt_that_is_known_whole_computes_one_token():
    books = scheduler()
    books.add(sequence("a", 33, first=5))
    run_out(books)
    books.add(sequence("b", 32, first=5))
    assert advance(books) == {"b": 16}  # the block of the last token is computed, the one before it known
    books.add(sequence("c", 33, first=5))
    assert advance(books) == {"b": 1, "c": 1}


def test_prompt_that_another_is_computing_waits_for_it_instead_of_computing_it_twice():
    books = scheduler(max_batched_tokens=512)
    for name in "abc":
        books.add(sequence(name, 40, first=5))
    assert advance(books) == {"a": 40}
    assert advance(books) == {"a": 1, "b": 8, "c": 8}


def test_later_chunk_takes_what_another_sequence_computed_meanwhile():
    books = scheduler(max_batched_tokens=16)
    long, other = sequence("a", 80, first=5), sequence("b", 80, first=5)
    books.add(long)
    advance(books)
    books.add(other)
    run_out(books)
    assert other.num_cached_tokens >= 48


def test_sequence_that_wants_prompt_logits_takes_nothing_from_the_tree():
    books = scheduler()
    for name, wants in (("a", False), ("b", True)):
        books.add(sequence(name, 40, first=5, needs_prompt_logits=wants))
        assert advance(books) == {name: 40}
        run_out(books)


def test_other_key_shares_nothing():
    books = scheduler()
    for name, key in (("a", KEY), ("b", KEY._replace(salt="b")), ("c", KEY._replace(adapter="c"))):
        books.add(sequence(name, 40, first=5, key=key))
        assert advance(books) == {name: 40}
        run_out(books)


def test_pinned_beginning_survives_what_needs_all_other_blocks():
    books = scheduler(num_blocks=10, max_pinned_blocks=2)
    books.add(sequence("house", 40, first=5, num_pinned_tokens=35))
    run_out(books)
    books.add(sequence("large", 120, 8))
    run_out(books)
    books.add(sequence("next", 40, first=5))
    assert advance(books) == {"next": 8}


def test_sequence_larger_than_the_pool_is_refused_and_one_as_large_completes():
    books = scheduler(num_blocks=4)
    with pytest.raises(PromptTooLong, match="max_model_len=64"):
        books.add(sequence("a", 60, 5))
    books.add(sequence("b", 60, 4))
    run_out(books)
    assert books.num_used_blocks == 0


def test_queue_is_bounded():
    books = scheduler(max_waiting=2)
    for name in "ab":
        books.add(sequence(name, 5))
    with pytest.raises(Overloaded, match=r"queue is full \(2 waiting\)"):
        books.add(sequence("c", 5))


def test_deadlines_are_found_waiting_and_running():
    books = scheduler(max_num_seqs=1)
    for name, deadline in (("a", 5.0), ("b", 3.0), ("c", None)):
        books.add(sequence(name, 5, deadline_s=deadline))
    advance(books)
    assert [each.id for each in books.expired(2.9)] == []
    assert [each.id for each in books.expired(5.0)] == ["a", "b"]
    for each in books.expired(5.0):
        books.finish(each)
        books.finish(each)
    assert set(advance(books)) == {"c"}


def test_finished_sequence_in_a_step_is_passed_over():
    books = scheduler()
    one, two = sequence("a", 5), sequence("b", 5)
    books.add(one)
    books.add(two)
    step = books.next_step()
    assert step is not None
    books.finish(one)
    advance(books, step)
    assert len(one.tokens) == 5 and len(two.tokens) == 6


def started(books: Scheduler, *sequences: Sequence) -> Step:
    """Their first decodes, which nobody has finished."""
    for each in sequences:
        books.add(each)
    while not all(each.is_decoding for each in sequences):
        advance(books)
    step = books.next_step()
    assert step is not None
    return step


def test_step_after_an_unfinished_one_has_its_blocks_and_leaves_out_whose_length_ends():
    books = scheduler()
    ends, full, goes_on = sequence("a", 5, max_new=2), sequence("b", 15, max_new=9), sequence("c", 30, max_new=9)
    step = started(books, ends, full, goes_on)
    assert [len(each.blocks) for each in (full, goes_on)] == [1, 2]
    after = books.step_after(step)
    assert after == Step((full, goes_on), (1, 1), is_ahead=True)
    # Its tokens go behind those of the first step.
    assert [len(each.blocks) for each in (full, goes_on)] == [2, 2]
    assert [each.num_computed for each in (full, goes_on)] == [15, 30]
    books.check()
    advance(books, step)
    assert ends.status == "finished" and advance(books, after) == {"b": 1, "c": 1}
    assert [len(each.tokens) for each in (full, goes_on)] == [18, 33]


def test_sequence_that_left_meanwhile_has_no_part_in_the_next_step_and_none_in_what_is_on_its_way():
    books = scheduler()
    one, two = sequence("a", 5), sequence("b", 5)
    step = started(books, one, two)
    after = books.step_after(step)
    assert after is not None
    books.finish(one)
    advance(books, step)
    further = books.step_after(after)
    assert further is not None and further.sequences == (two,)
    advance(books, after)
    assert (len(one.tokens), len(two.tokens)) == (6, 8)
    books.finish(two)
    assert books.step_after(further) is None


def test_nothing_follows_an_unfinished_step_while_somebody_may_come_in_or_another_runs():
    books = scheduler(num_blocks=8, max_num_seqs=2)
    step = started(books, sequence("a", 20))
    assert books.step_after(step) is not None
    waiting = sequence("b", 20)
    books.add(waiting)
    assert books.step_after(step) is None
    books.finish(waiting)
    longer = sequence("too long to come in", 100, max_new=20)
    books.add(longer)
    after = books.step_after(step)
    assert after is not None
    advance(books, step)
    advance(books, after)
    books.finish(longer)
    books.add(sequence("c", 5))
    advance(books)
    both = books.next_step()
    assert both is not None and len(both.sequences) == 2
    assert books.step_after(Step(both.sequences[:1], (1,))) is None


def test_nothing_follows_an_unfinished_step_where_blocks_lack_and_full_batches_are_no_hindrance():
    books = scheduler(num_blocks=5, max_num_seqs=2)
    step = started(books, sequence("a", 31, max_new=20), sequence("b", 31, max_new=20))
    books.add(sequence("waits", 5))
    assert books.step_after(step) is None
    books.check()
    advance(books, step)
    assert books.num_preemptions == 0
    advance(books)
    assert books.num_preemptions == 1


class Memory:
    """What each slot of the cache holds: for which key, and after which tokens, it was computed."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[PrefixKey, tuple[int, ...]]] = {}

    def run(self, step: Step, ahead: SequenceOf[int] = ()) -> None:
        """Check that everything before the new tokens is the sequence's own, then write those. `ahead`: the token of
        each sequence that the step before will turn out to have chosen.
        """
        writes: dict[int, tuple[PrefixKey, tuple[int, ...]]] = {}
        for index, (each, count) in enumerate(zip(step.sequences, step.num_tokens, strict=True)):
            tokens = [*each.tokens, *ahead[index : index + 1]]
            num_before = each.num_computed + step.is_ahead
            for position in range(num_before + count):
                slot = each.blocks[position // 16] * 16 + position % 16
                content = (each.key, tuple(tokens[: position + 1]))
                if position < num_before:
                    assert self.slots[slot] == content, f"{each.id} would read another's keys and values"
                else:
                    assert slot not in writes, "two sequences write one slot"
                    writes[slot] = content
        self.slots |= writes


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_books_balance_and_nobody_reads_foreign_blocks_over_any_history(data):
    num_blocks = data.draw(st.integers(6, 24), label="blocks")
    books = scheduler(
        num_blocks=num_blocks,
        max_batched_tokens=data.draw(st.sampled_from([16, 40, 400])),
        max_num_seqs=data.draw(st.integers(1, 5)),
        max_pinned_blocks=data.draw(st.integers(0, 2)),
        slots=SlotTable(data.draw(st.integers(1, 2)), min_resident_steps=data.draw(st.integers(0, 3))),
    )
    memory = Memory()
    alive: list[Sequence] = []
    drawn = random.Random(data.draw(st.integers(0, 10_000)))
    for number in range(data.draw(st.integers(1, 60), label="operations")):
        operation = drawn.choices(["add", "step", "cancel", "preempt"], [3, 10, 1, 1])[0]
        if operation == "add":
            prompt = drawn.randint(1, (num_blocks - 3) * 16 - 20)
            # Few different tokens, so that beginnings are often equal.
            tokens = [drawn.choice([0, 0, 0, 1]) if i % 16 == 0 else 0 for i in range(prompt)]
            key = KEY._replace(salt=drawn.choice(["", "", "x"]), adapter=drawn.choice(["", "", "A", "B", "C"]))
            each = sequence(str(number), prompt, drawn.randint(1, 20), key=key)
            each.tokens = tokens
            each.needs_prompt_logits = drawn.random() < 0.1
            each.num_pinned_tokens = drawn.choice([0, 0, 0, 20])
            books.add(each)
            alive.append(each)
        elif operation == "cancel" and alive:
            books.finish(alive.pop(drawn.randrange(len(alive))))
        elif operation == "preempt":
            books.preempt_youngest()
        else:
            walk(books, memory, alive, drawn)
        books.check()
    for _ in range(4000):
        if not books.has_work:
            break
        walk(books, memory, alive, drawn)
        books.check()
    assert not books.has_work, "somebody never ends"
    assert books.num_used_blocks == 0


def walk(books: Scheduler, memory: Memory, alive: list[Sequence], drawn: random.Random) -> None:
    step = books.next_step()
    if step is None:
        return
    memory.run(step)
    due = [s.num_computed + n == len(s.tokens) for s, n in zip(step.sequences, step.num_tokens, strict=True)]
    chosen = [[drawn.choice([0, 1])] if is_due else [] for is_due in due]
    while all(each.is_decoding for each in step.sequences) and drawn.random() < 0.7:
        after = books.step_after(step)
        if after is None:
            break
        books.check()
        token_of = dict(zip(step.sequences, chosen, strict=True))
        memory.run(after, [token_of[each][0] for each in after.sequences])
        finish(books, step, chosen, alive, drawn)
        step, chosen = after, [[drawn.choice([0, 1])] if each.status == "running" else [] for each in after.sequences]
        if drawn.random() < 0.1:
            books.preempt_youngest()  # while its step is on its way
    finish(books, step, chosen, alive, drawn)


def finish(books: Scheduler, step: Step, chosen: list[list[int]], alive: list[Sequence], drawn: random.Random) -> None:
    """Some end though their length does not say so."""
    books.finish_step(step, chosen)
    for each in step.sequences:
        is_over = len(each.tokens) >= each.max_total_tokens or drawn.random() < 0.02
        if is_over and each.status == "running" and each in alive:
            books.finish(each)
            alive.remove(each)


def tuned(name: str, adapter: str, num_prompt: int = 5, max_new: int = 8) -> Sequence:
    return sequence(name, num_prompt, max_new, key=KEY._replace(adapter=adapter))


def test_no_more_adapters_than_slots_run_and_others_are_passed_by():
    books = scheduler(slots=SlotTable(2))
    for name, adapter in (("a", "A"), ("b", "B"), ("c", "C"), ("d", "A"), ("e", "")):
        books.add(tuned(name, adapter))
    assert set(advance(books)) == {"a", "b", "d", "e"}
    names = set().union(*run_out(books))
    assert "c" in names and books.num_preemptions == 0


def test_sequence_whose_adapter_is_being_read_waits_and_holds_nobody_up():
    loaded: set[str] = set()
    books = scheduler(slots=SlotTable(2), is_loaded=loaded.__contains__)
    books.add(tuned("a", "A"))
    assert not books.has_work and books.next_step() is None
    books.add(tuned("b", ""))
    assert set(advance(books)) == {"b"}
    loaded.add("A")
    assert books.has_work
    assert set(advance(books)) == {"a", "b"}


def test_older_request_does_not_wait_for_a_stream_of_younger_ones():
    books = scheduler(slots=SlotTable(1, min_resident_steps=4))
    books.add(tuned("a0", "A"))
    advance(books)
    books.add(tuned("rare", "B"))
    for number in range(1, 60):
        if "rare" in advance(books):
            break
        if number % 2:
            books.add(tuned(f"a{number}", "A"))
    assert number < 20  # as long as what came before it takes
    assert books.num_preemptions > 0
    names = [set(step) for step in run_out(books)]
    assert sum(len({name[0] for name in step}) > 1 for step in names) == 0  # one slot: never two adapters in a step


def test_hundred_adapters_over_four_slots_are_all_answered_with_few_swaps():
    table = SlotTable(4)
    books = scheduler(num_blocks=512, max_num_seqs=16, max_waiting=400, slots=table)
    for number in range(300):
        books.add(tuned(str(number), f"adapter {number % 100}", 20, 6))
    finished = [name for step in run_out(books) for name in step]
    assert {int(name) for name in finished} == set(range(300))
    assert table.num_swaps <= 300


def test_forgotten_adapter_leaves_slot_and_tree():
    table = SlotTable(1)
    books = scheduler(slots=table)
    books.add(tuned("a", "A", 40))
    run_out(books)
    books.forget_adapter("A")
    books.check()
    assert table.slot_of("A") is None
    again = tuned("a", "A", 40)
    books.add(again)
    run_out(books)
    assert again.num_cached_tokens == 0


def branch_of(parent: Sequence, name: str, num_more: int) -> Sequence:
    more = random.Random(name)
    tokens = parent.tokens + [more.randrange(1000) for _ in range(num_more)]
    total = len(tokens)
    fields: dict[str, Any] = {"needs_prompt_logits": True, "num_unscored": len(parent.tokens), "is_branch": True}
    return Sequence(name, tokens, total, total, KEY, None, **fields)


def computed(books: Scheduler, parent: Sequence) -> Sequence:
    """A prompt of which all is computed and nothing follows."""
    books.add(parent)
    while parent.num_new:
        step = books.next_step()
        assert step is not None
        books.finish_step(step, [[] for _ in step.sequences])
    books.check()
    return parent


@pytest.mark.parametrize(("num_prompt", "num_copied"), [(40, 1), (48, 0)])
def test_branches_share_their_parents_blocks_and_copy_one_that_is_partly_full(num_prompt, num_copied):
    books = scheduler()
    parent = computed(books, sequence("p", num_prompt))
    branches = [branch_of(parent, f"b{i}", 3) for i in range(4)]
    num_forked, copies = books.fork([(parent, branch) for branch in branches])
    assert num_forked == 4 and len(copies) == 4 * num_copied
    assert len({target for _, target in copies}) == len(copies)
    assert {source for source, _ in copies} == set(parent.blocks[num_prompt // 16 :])
    books.check()
    assert advance(books) == {f"b{i}": 3 for i in range(4)}
    for each in (parent, *branches):
        books.finish(each)
    books.check()
    assert books.num_used_blocks == 0


def test_a_branch_that_was_set_back_computes_again_what_the_tree_has_lost():
    books = scheduler()
    parent = computed(books, sequence("p", 40))
    branch = branch_of(parent, "b", 3)
    books.fork([(parent, branch)])
    books.finish(parent)
    books.preempt_youngest()
    books.check()
    assert branch.status == "waiting"
    assert advance(books) == {"b": 43 - 32}  # two full blocks are in the tree still


def test_branches_take_no_places_from_answers_and_are_fewer_beside_them():
    books = scheduler(num_blocks=512, max_batched_tokens=512, max_num_seqs=2)
    parent = computed(books, sequence("p", 20))
    wanted = [(parent, branch_of(parent, f"b{i}", 2)) for i in range(300)]
    books.add(sequence("a", 20))
    assert books.fork(wanted)[0] == 32
    assert "a" in advance(books)
    books = scheduler(num_blocks=512, max_batched_tokens=512, max_num_seqs=2)
    parent = computed(books, sequence("p", 20))
    assert books.fork([(parent, branch_of(parent, f"b{i}", 2)) for i in range(300)])[0] == 256


def test_where_all_wait_to_be_forked_the_youngest_gives_way_and_the_eldest_is_forked():
    books = scheduler(num_blocks=7, max_batched_tokens=512)
    parents = [computed(books, sequence(name, 40)) for name in "ab"]
    assert books.next_step() is None
    assert [each.status for each in parents] == ["running", "waiting"]
    num_forked, _ = books.fork([(parents[0], branch_of(parents[0], "a1", 3))])
    assert num_forked == 1
    assert advance(books)["a1"] == 3


def test_waiting_tokens_are_those_of_prompts_that_are_not_computed():
    books = scheduler(max_num_seqs=2)
    for name, count in (("a", 40), ("b", 40), ("c", 30)):
        books.add(sequence(name, count))
    assert books.num_waiting_tokens == 110
    advance(books)
    assert books.num_waiting_tokens == 110 - 40 - 16  # in whole blocks
    advance(books)
    assert books.num_waiting_tokens == 30
    run_out(books)
    assert books.num_waiting_tokens == 0
