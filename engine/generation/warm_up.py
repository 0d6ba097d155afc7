"""What the engine's thread does before the first request: take its cores, time steps, compute the system prompt."""

from __future__ import annotations

import os
from statistics import median

import torch

from engine.config import GeneratorSettings, usable_cores
from engine.errors import ConfigError
from engine.generation.prompt import PromptBuilder
from engine.generation.runner import Runner
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import BLOCK_TOKENS, PrefixKey, Sequence
from engine.values import GenerationRequest, Message, SamplingParams

# Step sizes timed at start-up; prompt chunks above the decodes'.
_DECODE_SIZES = (1, 2, 4, 8, 16, 32, 64)
_RECORDED_SIZES = (128, 256)  # of decodes too, where their steps are recorded
_CHUNK_SIZES = (128, 256, 512)
_NUM_TIMINGS = 3


def take_cores(settings: GeneratorSettings) -> None:
    """Set the cores and threads of torch's and the kernels' parallel regions, which belong to the calling thread.

    Raises: ConfigError where the process may not use those cores.
    """
    cores = settings.cores
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except (OSError, AttributeError) as error:
            raise ConfigError(
                f"generator.cores={list(cores)} cannot be used ({error}); this process may use "
                f"{usable_cores()} cores. Leave it empty to use all."
            ) from None
    # Ranks on the CPUs of one machine share its cores.
    shared = max(1, (len(cores) or usable_cores()) // settings.tensor_parallel)
    torch.set_num_threads(settings.threads or shared)


def measure_steps(runner: Runner, *, max_decodes: int, max_tokens: int) -> dict[int, float]:
    """Median seconds of a step by its number of tokens: decodes up to `max_decodes`, above them prompt chunks."""
    decodes: tuple[int, ...] = _DECODE_SIZES
    if runner.max_repeated_tokens:
        # A chunk of as many tokens is launched one by one, and says nothing of decodes.
        decodes, max_decodes = (*decodes, *_RECORDED_SIZES), min(runner.max_repeated_tokens, max_tokens)
    sizes = [(size, True) for size in decodes if size <= max(max_decodes, 1)]
    sizes += [(size, False) for size in _CHUNK_SIZES if sizes[-1][0] < size <= max(max_tokens, 1)]
    step_s: dict[int, float] = {}
    for size, is_decode in sizes:
        runner.measure(size, is_decode=is_decode)  # the first of a size also pays for set-up
        times = [runner.measure(size, is_decode=is_decode) for _ in range(_NUM_TIMINGS)]
        step_s[size] = median(times)
    return step_s


def measure_least_chunk(runner: Runner, *, max_tokens: int) -> float:
    """Median seconds of the smallest prompt chunk behind others, where steps of decodes are recorded; otherwise 0."""
    if not runner.max_repeated_tokens:
        return 0.0
    before = max(min(_CHUNK_SIZES[-1], max_tokens) - BLOCK_TOKENS, 0)
    times = [runner.measure(BLOCK_TOKENS, is_decode=False, num_before=before) for _ in range(1 + _NUM_TIMINGS)]
    return median(times[1:])


def pin_system_prompt(prompts: PromptBuilder, model_digest: str, scheduler: Scheduler, runner: Runner) -> None:
    """Keep the keys and values of what every conversation without a system prompt of its own begins with."""
    beginnings = [
        prompts.build(GenerationRequest("", (Message("user", text),), sampling=SamplingParams(max_tokens=1))).token_ids
        for text in ("a", "b")
    ]
    shared = next((i for i, pair in enumerate(zip(*beginnings, strict=False)) if pair[0] != pair[1]), 0)
    if shared < BLOCK_TOKENS:
        return
    tokens = beginnings[0][: shared + 1]
    sequence = Sequence(
        id="",
        tokens=tokens,
        num_prompt_tokens=len(tokens),
        max_total_tokens=len(tokens) + 1,
        key=PrefixKey(model_digest, "", ""),
        deadline_s=None,
        num_pinned_tokens=shared,
    )
    scheduler.add(sequence)
    while not sequence.is_decoding and (step := scheduler.next_step()) is not None:
        runner.run(step)
        scheduler.finish_step(step, [[0] if step.completes(0) else []])
    scheduler.finish(sequence)
