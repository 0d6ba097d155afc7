"""Measure every arm on every question, through a real server.

Signals are read first. Then each question is asked of all arms in turn, in an order that a seed draws for each of them:
what warms the server up, or slows it down for a while, meets all arms alike. Decoding is greedy.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import SwitchyardError
from engine.evaluation.asking import Answer, AskOptions, HttpAsk, Server, answer_all
from engine.evaluation.grading import grade
from engine.evaluation.outcomes import ArmOutcome, Outcomes, QuestionOutcome
from engine.evaluation.questions import Question
from engine.evaluation.served import BATCH, Served, Signals, read_served, read_signals
from engine.evaluation.work_log import WorkLog, open_work_log
from engine.routing.arms import Arm, parse_arm
from engine.routing.keys import Keys

_WARM_UP = "What is this about?"
_COLLECT_AGAIN = "Outcomes of both cannot be mixed: begin anew with --restart while nothing changes."


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What is measured, and how. `arms` None: all that can answer now; a labels adapter with passages only by name."""

    arms: tuple[str, ...] | None = None
    concurrency: int = 8
    max_tokens: int = 64
    collection: str | None = None
    with_embeddings: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Began:
    """Of `num_answers` answers, `kept` were there already, by arm; and `num_signals` of the questions' signals."""

    arms: tuple[str, ...]
    num_questions: int
    num_answers: int
    num_signals: int
    kept: dict[str, list[ArmOutcome]]


@dataclass(frozen=True, slots=True)
class SignalsRead:
    """So many questions have their signals."""

    num: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer more."""

    arm: str
    outcome: ArmOutcome


Event = Began | SignalsRead | Answered
Listener = Callable[[Event], None]


async def collect(
    server: Server,
    questions: Sequence[Question],
    options: CollectOptions,
    work: Path,
    *,
    restart: bool = False,
    listener: Listener = lambda event: None,
) -> Outcomes:
    """The outcomes of every arm on every question; what is found is kept in `work`, and a second call goes on.

    Answers with an error are asked again by a second call. The file is left where it is.
    Raises: ServerUnreachable, ServerError; SwitchyardError where an arm cannot answer, the file is of something else,
    or model, encoder, index or an adapter became another one meanwhile.
    """
    served = await read_served(server, options.collection)
    arms = served.choose(options.arms)
    keys = served.keys_of(arms)
    with open_work_log(work, _identity(questions, arms, keys, options), restart=restart) as log:
        measured = _Measured(log, arms, keys)
        num_answers = len(questions) * len(arms)
        listener(Began(arms, len(questions), num_answers, len(measured.signals), measured.by_arm()))
        await _read_signals(server, questions, options, measured, listener)
        ask = HttpAsk(
            server, served.base_model, AskOptions(max_tokens=options.max_tokens, collection=options.collection)
        )
        jobs = [job for job in _jobs(questions, arms, options.seed) if not measured.has(*job)]
        if jobs:
            for name in arms:
                await ask(parse_arm(name), Question("", _WARM_UP))
        async with aclosing(answer_all(ask, jobs, concurrency=options.concurrency)) as answers:
            async for arm, question, answer in answers:
                outcome = measured.keep(arm, question, answer)
                listener(Answered(arm.name, outcome))
        _check_unchanged(served, await read_served(server, options.collection), arms)
        return measured.outcomes(questions, options)


def _identity(
    questions: Sequence[Question], arms: Sequence[str], keys: Keys, options: CollectOptions
) -> dict[str, Any]:
    """What answers must agree in to be of one file."""
    # Paraphrases are not asked.
    asked = [{name: value for name, value in asdict(each).items() if name != "paraphrases"} for each in questions]
    content = json.dumps(asked, ensure_ascii=False)
    return {
        "questions": f"{len(questions)} ({hashlib.sha256(content.encode()).hexdigest()[:12]})",
        "arms": [*arms],
        "model": keys.model,
        "index": keys.index,
        "encoder": keys.encoder,
        **{f"adapter {name}": digest for name, digest in keys.adapters.items()},
        "max_tokens": options.max_tokens,
        "concurrency": options.concurrency,
        "collection": options.collection,
        "seed": options.seed,
        "embeddings": options.with_embeddings,
    }


async def _read_signals(
    server: Server, questions: Sequence[Question], options: CollectOptions, measured: _Measured, listener: Listener
) -> None:
    missing = [each for each in questions if each.id not in measured.signals]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        found = await read_signals(
            server,
            [each.question for each in batch],
            collection=options.collection,
            with_embeddings=options.with_embeddings,
        )
        for question, signals in zip(batch, found, strict=True):
            measured.keep_signals(question, signals)
        listener(SignalsRead(len(measured.signals)))


def _jobs(questions: Sequence[Question], arms: Sequence[str], seed: int) -> Iterator[tuple[Arm, Question]]:
    """Every question on every arm. Questions are shuffled, so that a slow hour is not that of one source."""
    draw = random.Random(seed)
    for question in draw.sample(questions, len(questions)):
        for arm in draw.sample(arms, len(arms)):
            yield parse_arm(arm), question


def _check_unchanged(before: Served, after: Served, arms: Sequence[str]) -> None:
    gone = [arm for arm in arms if not after.can_answer(arm)]
    differences = [f"{arm} can answer no more" for arm in gone]
    differences += before.keys_of(arms).differences(after.keys_of(arms))
    if differences:
        raise SwitchyardError(f"while answers were collected, {differences[0]}. {_COLLECT_AGAIN}")


class _Measured:
    """Signals and outcomes so far, in memory and in the log."""

    def __init__(self, log: WorkLog, arms: Sequence[str], keys: Keys) -> None:
        self.signals: dict[str, Signals] = {}
        self._log = log
        self._arms = arms
        self._keys = keys
        self._found: dict[tuple[str, str], ArmOutcome] = {}
        self._index_version: int | None = None
        for entry in log.entries:
            self._take(entry)

    def by_arm(self) -> dict[str, list[ArmOutcome]]:
        """The outcomes that need not be asked again."""
        return {
            arm: [found for (_, of), found in self._found.items() if of == arm and found.error is None]
            for arm in self._arms
        }

    def has(self, arm: Arm, question: Question) -> bool:
        """Whether there is an answer that is no error."""
        found = self._found.get((question.id, arm.name))
        return found is not None and found.error is None

    def keep_signals(self, question: Question, signals: Signals) -> None:
        self._log.add({"id": question.id, "signals": signals.values, "embedding": signals.embedding})
        self.signals[question.id] = signals

    def keep(self, arm: Arm, question: Question, answer: Answer) -> ArmOutcome:
        """Grade an answer and keep the grade. Raises: SwitchyardError where something else answered than before."""
        self._check(arm, answer)
        outcome = _outcome(question, answer)
        self._log.add(
            {"id": question.id, "arm": arm.name, "outcome": asdict(outcome), "index_version": answer.index_version}
        )
        self._found[question.id, arm.name] = outcome
        return outcome

    def outcomes(self, questions: Sequence[Question], options: CollectOptions) -> Outcomes:
        others = {"concurrency": f"{options.concurrency} at once", "max_tokens": str(options.max_tokens)}
        return Outcomes(
            replace(self._keys, others={**self._keys.others, **others}),
            tuple(
                QuestionOutcome(
                    id=each.id,
                    source=each.source,
                    group=each.group,
                    question=each.question,
                    signals=self.signals[each.id].values,
                    embedding=self.signals[each.id].embedding,
                    arms={arm: self._found[each.id, arm] for arm in self._arms},
                )
                for each in questions
            ),
            str(self._log.path),
        )

    def _take(self, entry: dict[str, Any]) -> None:
        try:
            if "signals" in entry:
                embedding = entry["embedding"]
                self.signals[entry["id"]] = Signals(entry["signals"], None if embedding is None else tuple(embedding))
            else:
                self._found[entry["id"], entry["arm"]] = ArmOutcome(**entry["outcome"])
                self._index_version = self._index_version or entry["index_version"]
        except (KeyError, TypeError):
            raise SwitchyardError(
                f"{self._log.path}: holds a line that `router collect` did not write. Begin anew with --restart."
            ) from None

    def _check(self, arm: Arm, answer: Answer) -> None:
        """The keys name the kind of index; each answer says which version of the documents it was given."""
        if answer.error is not None:
            return
        digest = None if arm.adapter is None else self._keys.adapters.get(arm.adapter)
        if digest is not None and answer.adapter_digest not in (None, digest):
            raise SwitchyardError(
                f"while answers were collected, adapter {arm.adapter!r} was replaced. {_COLLECT_AGAIN}"
            )
        if not arm.has_context or answer.index_version is None:
            return
        if self._index_version not in (None, answer.index_version):
            raise SwitchyardError(
                f"while answers were collected, the documents changed: version {answer.index_version}, was "
                f"{self._index_version}. {_COLLECT_AGAIN}"
            )
        self._index_version = answer.index_version


def _outcome(question: Question, answer: Answer) -> ArmOutcome:
    if answer.error is not None:
        return ArmOutcome(None, question.metric, None, error=answer.error)
    found = grade(question, answer.text, refused=answer.refused)
    return ArmOutcome(
        quality=found.quality,
        metric=found.metric,
        latency_ms=None if answer.latency_ms is None else round(answer.latency_ms, 2),
        refused=found.refused,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
    )
