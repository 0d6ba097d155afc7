"""The generation bench's prompts: what the committed trace holds, and how much of it could be reused."""

from __future__ import annotations

from collections import Counter

from loadtest.generation.workloads import Job, copying_jobs, free_jobs, ideal_reuse, read_trace


def test_trace_has_the_shape_that_its_description_says():
    trace = read_trace()
    assert len(trace.system) == 150 and len(trace.chunks) == 200 and len(trace.requests) == 96
    assert {len(chunk) for chunk in trace.chunks} == {250}
    for chunks, question, num_output in trace.requests:
        assert len(set(chunks)) == 4 and len(question) == 30 and 1 <= num_output <= 64
    assert {len(job.prompt) for job in trace.jobs()} == {150 + 4 * 250 + 30}
    assert min(num_output for _, _, num_output in trace.requests) < 64


def test_popular_chunks_are_drawn_as_zipf_has_it():
    drawn = Counter(chunk for chunks, _, _ in read_trace().requests for chunk in chunks)
    top = sum(drawn[chunk] for chunk in range(10)) / drawn.total()
    tail = sum(drawn[chunk] for chunk in range(100, 200)) / drawn.total()
    assert 0.4 < top < 0.65 and 0.05 < tail < 0.2  # without replacement: 0.5 and 0.12 of the weight lie there


def test_ideal_reuse_equals_a_count_by_hand():
    beginning = tuple(range(32))
    jobs = [Job((*beginning, *[90] * 10), 1), Job((*beginning, *[91] * 10), 1), Job(beginning, 1)]
    # The second finds 32 tokens, the third 16: its last block holds the token that is always computed.
    assert ideal_reuse(jobs) == (32 + 16) / (42 + 42 + 32)
    assert 0.13 < ideal_reuse(read_trace().jobs()) < 0.8


def test_free_prompts_share_nothing_and_repeat_with_their_seed():
    jobs = free_jobs(20, seed=3)
    assert jobs == free_jobs(20, seed=3) != free_jobs(20, seed=4)
    assert {(len(job.prompt), job.num_output) for job in jobs} == {(64, 64)}
    assert ideal_reuse(jobs) == 0


def test_copying_prompts_end_in_the_middle_of_a_chunk_that_they_hold():
    trace = read_trace()
    for job, chunk in zip(copying_jobs(trace, 3), trace.chunks, strict=False):
        assert job.prompt == (*trace.system, *chunk, *chunk[:125]) and job.num_output == 64 and job.drafts
