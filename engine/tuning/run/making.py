"""The task of a run, ready to encode and to judge: its instruction, and the passages of its questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config import GeneratorSettings
from engine.errors import ConfigError, TrainingDataError
from engine.tuning.data.examples import Examples
from engine.tuning.data.rows import QuestionRow, Row
from engine.tuning.outcome import Context
from engine.tuning.run.options import TuneOptions
from engine.tuning.run.work_folder import WorkFolder
from engine.tuning.tasks.chat import ChatTask
from engine.tuning.tasks.classify import DEFAULT_INSTRUCTION, ClassifyTask
from engine.tuning.tasks.encoding import PromptEncoder
from engine.tuning.tasks.qa import SPARE_PASSAGES, ContextOptions, QaTask
from engine.tuning.tasks.task import TuningTask
from engine.values import Passage

# [N] questions and a number to the passages of each, best first.
Search = Callable[[Sequence[str], int], Sequence[Sequence[Passage]]]
PASSAGES_FILE = "passages.json"
_QUERIES_AT_ONCE = 32


def instruction_of(examples: Examples, options: TuneOptions) -> str:
    """The system message: as asked for, else the task's."""
    if options.instruction is not None:
        return options.instruction
    return DEFAULT_INSTRUCTION if examples.task == "classify" else GeneratorSettings().system_prompt


def context_of(examples: Examples, options: TuneOptions) -> Context:
    """The passages that questions are shown: as asked for, else the rows' own contexts where all have one.

    Raises: ConfigError for a context of another task.
    """
    questions = [row for row in examples.rows if isinstance(row, QuestionRow)]
    if not questions:
        if options.context not in (None, "none"):
            raise ConfigError(
                f"context={options.context!r} is for questions; {examples.source} is for {examples.task}."
            )
        return "none"
    return options.context or ("gold" if all(row.context is not None for row in questions) else "none")


def check_contexts(examples: Examples, context: Context) -> None:
    """Raises: TrainingDataError naming the first row that has no context, where the rows' own are shown."""
    for row in examples.rows:
        if context == "gold" and isinstance(row, QuestionRow) and row.context is None:
            raise TrainingDataError(
                f"{examples.source}:{row.line}: has no 'context', which --context gold shows. Add it, or use --context "
                "none or retrieved."
            )


def make_task(
    model: Path, max_model_len: int, examples: Examples, options: TuneOptions, found: dict[str, list[Passage]]
) -> TuningTask[Any]:
    """The task of `examples`; `found` are the passages of each question, where they are retrieved."""
    encoder = PromptEncoder(model, max_model_len=max_model_len, instruction=instruction_of(examples, options))
    if examples.task == "classify":
        return ClassifyTask(encoder, examples.labels)
    if examples.task == "chat":
        return ChatTask(encoder, num_judged=options.num_judged)
    contexts = ContextOptions(context_of(examples, options), options.num_passages, options.share_without, options.seed)
    return QaTask(encoder, contexts, num_judged=options.num_judged, found=found)


def find_passages(
    work: WorkFolder, rows: Sequence[Row], options: TuneOptions, search: Search | None
) -> dict[str, list[Passage]]:
    """The passages of each question, from the index as it is now; a run that goes on keeps those it began with.

    Raises: ConfigError without an index to search.
    """
    if search is None:
        raise ConfigError("context='retrieved' needs a running server to search; name it with --url.")
    kept: dict[str, Any] = work.once(PASSAGES_FILE, lambda: _search_all(rows, options, search))
    chunks = {chunk: Passage(**content) for chunk, content in kept["chunks"].items()}
    return {question: [chunks[chunk] for chunk in names] for question, names in kept["found"].items()}


def _search_all(rows: Sequence[Row], options: TuneOptions, search: Search) -> dict[str, Any]:
    questions = list(dict.fromkeys(row.question for row in rows if isinstance(row, QuestionRow)))
    chunks: dict[str, Any] = {}
    found: dict[str, list[str]] = {}
    for begin in range(0, len(questions), _QUERIES_AT_ONCE):
        asked = questions[begin : begin + _QUERIES_AT_ONCE]
        for question, passages in zip(asked, search(asked, options.num_passages + SPARE_PASSAGES), strict=True):
            # A score is of one question; the prompt does not show it.
            chunks |= {passage.chunk: asdict(passage) for passage in passages}
            found[question] = [passage.chunk for passage in passages]
    return {"chunks": chunks, "found": found}
