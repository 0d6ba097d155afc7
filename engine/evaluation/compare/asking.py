"""Contenders as arms that are asked: few-shot with earlier turns, `auto` with the route left to the server."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.evaluation.asking import Answer, AskOptions, HttpAsk, Server, answer_all
from engine.evaluation.compare.contenders import Contender
from engine.evaluation.compare.few_shot import FewShot
from engine.evaluation.compare.kept import KeptAnswers, key_of
from engine.evaluation.grading import grade
from engine.evaluation.questions import Question
from engine.routing.arms import Arm

_TOO_LONG = "max_model_len"


@dataclass(frozen=True, slots=True)
class ServerState:
    """What answers depend on besides their prompts. `router` None is not known."""

    base_model: str
    model_digest: str
    collection: str
    version: int
    router: str | None


class ContenderAsk:
    """`Ask` for all contenders, and the keys that their answers are kept under."""

    def __init__(
        self,
        server: Server,
        state: ServerState,
        contenders: Sequence[Contender],
        options: AskOptions,
        few_shot: FewShot | None,
        concurrency: int,
    ) -> None:
        self._concurrency = concurrency
        self._http = HttpAsk(server, state.base_model, options)
        self._state = state
        self._contenders = {each.arm: each for each in contenders}
        self._options = options
        self._few_shot = few_shot

    async def __call__(self, arm: Arm, question: Question) -> Answer:
        """See Ask."""
        contender = self._contenders[arm]
        if contender.kind == "auto":
            return await self._http.chat(arm, self._messages(contender, question), route="auto")
        if contender.kind != "few-shot":
            return await self._http(arm, question)
        answer, num = await self._few_shot_answer(question, None), 2
        while answer.error is not None and _TOO_LONG in answer.error and num:
            # Examples that leave no room for the question are fewer then.
            answer, num = await self._few_shot_answer(question, num), num // 2
        return answer

    @property
    def concurrency(self) -> int:
        """So many are to be asked at once."""
        return self._concurrency

    def key(self, contender: Contender, question: Question, version: int) -> str:
        """The key of an answer with the knowledge base at `version`."""
        state = self._state
        return key_of(
            model=state.model_digest,
            adapter=contender.digest,
            arm=contender.name,
            messages=self._messages(contender, question),
            max_tokens=self._options.max_tokens,
            # The answer's time depends on it.
            at_once=self._concurrency,
            knowledge=[state.collection, version] if contender.may_show_passages else None,
            router=state.router if contender.kind == "auto" else None,
        )

    def _messages(self, contender: Contender, question: Question) -> list[dict[str, str]]:
        turns = []
        if contender.kind == "few-shot" and self._few_shot is not None:
            turns = self._few_shot.turns(question.question)
        return [*turns, {"role": "user", "content": question.question}]

    async def _few_shot_answer(self, question: Question, num: int | None) -> Answer:
        assert self._few_shot is not None
        turns = self._few_shot.turns(question.question, num)
        return await self._http.chat(Arm(None, False), [*turns, {"role": "user", "content": question.question}])


class Listener:
    """Hears how the asking goes. The methods do nothing here."""

    def begun(self, num_answers: int, num_kept: int) -> None:
        """So many answers are needed, and so many of them were kept before."""

    def answered(self, arm: str, quality: float) -> None:
        """An arm has answered a question that well."""

    def working(self, what: str) -> None:
        """Something else is being done."""


async def ask_all(
    ask: ContenderAsk,
    contenders: Sequence[Contender],
    questions: Sequence[Question],
    kept: KeptAnswers,
    *,
    version: int,
    listener: Listener,
) -> dict[tuple[str, str], Answer]:
    """The answer of every contender to every question, by name and id; those that are kept are not asked for again.

    The contenders take turns on each question, in an order that is drawn for each, so that none always profits from
    what another left in the caches. One answer of each is asked for before and thrown away.
    Raises: what `ask` raises; the answers until then are kept.
    """
    by_arm = {each.arm: each for each in contenders}
    found: dict[tuple[str, str], Answer] = {}
    jobs: list[tuple[Arm, Question]] = []
    for question in questions:
        for each in _shuffled(contenders, question.id):
            answer = kept.get(ask.key(each, question, kept.version(version)))
            if answer is None:
                jobs.append((each.arm, question))
            else:
                found[each.name, question.id] = answer
    listener.begun(len(jobs) + len(found), len(found))
    by_id = {each.id: each for each in questions}
    for (name, id), answer in found.items():
        listener.answered(name, quality_of(by_id[id], answer))
    if not jobs:
        return found
    for arm in dict.fromkeys(arm for arm, _ in jobs):
        await ask(arm, questions[0])
    async for arm, question, answer in answer_all(ask, jobs, concurrency=ask.concurrency):
        contender = by_arm[arm]
        # One that failed is asked for again by the next run: what was in its way may be gone.
        if answer.error is None:
            kept.add(ask.key(contender, question, kept.version(version)), answer)
        found[contender.name, question.id] = answer
        listener.answered(contender.name, quality_of(question, answer))
    return found


def quality_of(question: Question, answer: Answer) -> float:
    """The quality of an answer; of one that failed it is 0, since the user got none."""
    return 0.0 if answer.error is not None else grade(question, answer.text, refused=answer.refused).quality


def _shuffled(contenders: Sequence[Contender], id: str) -> list[Contender]:
    order = list(contenders)
    random.Random(id).shuffle(order)
    return order
