"""What the GPU bench is to show beside what it has shown: a line for each figure, read from the result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.generation.plan import BATCH

SHAPE = "Mistral-7B"
CONTEXT = 512
WIDTHS = (1, 8, 64)
LORA_WIDTH = 32
PROMPT_TOKENS = 2048
SEARCH_CASE = "exact search, batch 64, k 10"
ENGINE_SEARCH, KERNEL_SEARCH = "engine", "masked_topk"
NOT_MEASURED = "not measured"

Contents = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that is to be `goal` or more; `find` reads it from the result files, None where it is absent."""

    figure: str
    goal: float
    unit: str
    find: Callable[[Contents], float | None]


def bars(shape: str = SHAPE) -> tuple[Bar, ...]:
    """All of them, in the order of the table."""
    decode = f"{shape} decode"
    return (
        *(
            Bar(
                f"{decode}, batch {width}: share of the bandwidth bound (weights and KV over the copy rate)",
                *(75.0, "%", _share(f"{decode} {width}x{CONTEXT} graph")),
            )
            for width in WIDTHS
        ),
        Bar(
            f"{shape} prompt of {PROMPT_TOKENS}: share of the bfloat16 GEMM rate",
            *(55.0, "%", _share(f"{shape} prompt 1x{PROMPT_TOKENS}")),
        ),
        Bar(
            f"{shape}, 8 adapters of rank 16, batch {LORA_WIDTH}: a base step over theirs",
            *(0.9, "x", _step_ratio(f"{decode} {LORA_WIDTH}x{CONTEXT}")),
        ),
        *(
            Bar(f"search of 1M x 384 fp16, batch 64, k 10, {system}: share of its memory bound", 50.0, "%", find)
            for system, find in ((name, _search(name)) for name in (ENGINE_SEARCH, KERNEL_SEARCH))
        ),
        Bar(
            f"{shape}, engine at 64 requests over {BATCH}, tokens/s",
            *(3.0, "x", _ratio(f"{shape} free c=64", BATCH)),
        ),
    )


def bar_lines(contents: Contents, *, shape: str = SHAPE, is_dry: bool = False) -> list[str]:
    """The table: figure | found | goal | met, missed or not measured. What a dry run finds is held to no goal."""
    known = list(contents)
    lines = ["figure | found | goal | met"]
    for bar in bars(shape):
        value = bar.find(known)
        found = NOT_MEASURED if value is None else f"{value:.3g} {bar.unit}"
        if is_dry or value is None:
            met = "dry run" if is_dry and value is not None else NOT_MEASURED
        else:
            met = "met" if value >= bar.goal else "MISSED"
        lines.append(f"{bar.figure} | {found} | {bar.goal:g} {bar.unit} | {met}")
    return lines


def _share(step: str) -> Callable[[Contents], float | None]:
    def find(contents: Contents) -> float | None:
        found = _step(contents, step)
        return None if found is None else 100 * float(found["bound_ms"]) / float(found["step_ms"])

    return find


def _step_ratio(step: str) -> Callable[[Contents], float | None]:
    def find(contents: Contents) -> float | None:
        base, adapted = (_step(contents, f"{step}{kind} graph") for kind in ("", " lora8"))
        return None if base is None or adapted is None else float(base["step_ms"]) / float(adapted["step_ms"])

    return find


def _step(contents: Contents, name: str) -> Mapping[str, Any] | None:
    return next((content["steps"][name] for content in contents if name in content.get("steps", {})), None)


def _search(system: str) -> Callable[[Contents], float | None]:
    def find(contents: Contents) -> float | None:
        rows = (row for content in contents for row in content["rows"])
        key = (SEARCH_CASE, system, "share_of_bound")
        return next((row["value"] for row in rows if (row["case"], row["system"], row["metric"]) == key), None)

    return find


def _ratio(case: str, over: str) -> Callable[[Contents], float | None]:
    def find(contents: Contents) -> float | None:
        ratios = (ratio for content in contents for ratio in content["ratios"])
        return next((each["value"] for each in ratios if (each["case"], each["ours_over"]) == (case, over)), None)

    return find
