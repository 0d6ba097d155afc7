"""What the generation bench measures, and what it has found."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from loadtest.bench_format import OURS, Ratio, Row, paired_ratio, spread
from loadtest.peers import llama_cpp

METRIC, UNIT = "output_tok_s", "tokens/s"
GENERATE, BATCH, LLAMA = "transformers generate", "transformers generate_batch", "llama.cpp"
CASES = {
    "free": "64 random tokens in and 64 out; over transformers' generate and generate_batch, and llama.cpp",
    "rag": "the committed trace of prompts with retrieved passages; over generate and llama.cpp",
    "lora8": "the trace over eight adapters of rank 16; over one adapter. And the trace without an adapter while eight "
    "are loaded (base with adapters on); over none loaded",
    "copied": "answers that copy a passage; over the same without drafts and llama.cpp. The same with the prompt in "
    "the prefix cache, and answers to noise, where the model repeats itself (drafted noise); over both without drafts",
    "classify": "each of 77 labels scored for each text in one call; over one call per label and over a label written "
    "under a grammar. And the share of what the machine's matrix products allow",
    "latency": "time to the first token, cold and warm (ttft); gaps between tokens while long prompts arrive (gaps)",
    "steps": "where the time of a step goes, against the least that the machine needs",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: jobs of a round by number of clients, and rounds.

    `classify`: texts, and how many of them take a call for each label.
    """

    free: dict[int, int]
    rag: dict[int, int]
    rounds: int
    slow_rounds: int  # of systems that take much longer than ours
    profiles: tuple[str, ...]
    llama_formats: tuple[str, ...]
    widest_trial: int  # clients up to which formats and settings of the peers are tried
    lora: dict[int, int] = field(default_factory=dict)
    copied: dict[int, int] = field(default_factory=dict)
    classify: dict[int, int] = field(default_factory=dict)
    llama_speculation: tuple[str, ...] = ("none",)
    latency: bool = True

    def rounds_of(self, system: str) -> int:
        """Rounds in which a system takes part."""
        return self.slow_rounds if system in (BATCH, LLAMA) else self.rounds

    def narrowed(self, clients: Collection[int], rounds: int | None) -> Plan:
        """This plan for the numbers of clients that are named, or all, in so many rounds.

        Raises: ValueError for a number of clients that no case has, and for less than one round.
        """
        known = sorted({*self.free, *self.rag, *self.lora, *self.copied})
        unknown = sorted(set(clients) - set(known))
        if unknown:
            raise ValueError(f"no case has {unknown[0]} clients; there are: {', '.join(map(str, known))}")
        if rounds is not None and rounds < 1:
            raise ValueError(f"{rounds} rounds measure nothing; name 1 or more")

        def some(jobs: dict[int, int]) -> dict[int, int]:
            return {number: count for number, count in jobs.items() if not clients or number in clients}

        most = self.rounds if rounds is None else rounds
        return replace(
            self,
            free=some(self.free),
            rag=some(self.rag),
            lora=some(self.lora),
            copied=some(self.copied),
            rounds=most,
            slow_rounds=min(self.slow_rounds, most),
        )

    def only(self, names: Collection[str]) -> Plan:
        """This plan without the cases that are not named. Raises: ValueError for a name that is not in CASES."""
        unknown = sorted(set(names) - set(CASES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no case of this bench; there is: {', '.join(CASES)}")
        nothing: dict[int, int] = {}
        return replace(
            self,
            free=self.free if "free" in names else nothing,
            rag=self.rag if "rag" in names else nothing,
            lora=self.lora if "lora8" in names else nothing,
            copied=self.copied if "copied" in names else nothing,
            classify=self.classify if "classify" in names else nothing,
            latency=self.latency and "latency" in names,
            profiles=self.profiles if "steps" in names else (),
        )


FULL = Plan(
    *({1: 4, 8: 16, 32: 64}, {1: 4, 8: 16, 32: 32}, 3, 2),
    profiles=("1x96", "8x96", "32x96", "1x1200", "8x1200", "32x1200"),
    llama_formats=llama_cpp.FORMATS,
    widest_trial=8,
    lora={8: 16, 32: 32},
    copied={1: 4, 4: 8, 8: 16, 16: 32, 32: 32},
    classify={32: 2},
    llama_speculation=tuple(llama_cpp.SPECULATION),
)
QUICK = Plan(
    *({1: 1, 8: 8}, {2: 2}, 2, 1, ("1x96", "8x1200")),
    llama_formats=llama_cpp.FORMATS[:1],
    widest_trial=1,
    copied={1: 1},
    classify={4: 1},
    llama_speculation=tuple(llama_cpp.SPECULATION)[:2],
)


@dataclass(slots=True)
class Findings:
    """What the bench has found so far."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add_case(self, case: str, rates: dict[str, list[float]], *, metric: str = METRIC, unit: str = UNIT) -> None:
        """Rates of each system, by round; ours against each other one."""
        for system, values in rates.items():
            self.rows.append(Row(case, system, metric, unit, *spread(values)))
            if system != OURS:
                ours = rates[OURS][: len(values)]
                self.ratios.append(Ratio(case, metric, system, *paired_ratio(ours, values, higher_is_better=True)))
