"""The whole comparison, from a server and questions to figures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.errors import ServerUnreachable, SwitchyardError
from engine.evaluation.asking import AskOptions, Server, base_model_name
from engine.evaluation.compare.asking import ContenderAsk, Listener, ServerState, ask_all
from engine.evaluation.compare.assembling import assemble, distrust, known_labels
from engine.evaluation.compare.contenders import Contender, choose_contenders
from engine.evaluation.compare.costs import Refresh, index_size, measure_refresh, tuning_minutes
from engine.evaluation.compare.documents import put_back
from engine.evaluation.compare.figures import Comparison
from engine.evaluation.compare.job import CompareJob
from engine.evaluation.compare.kept import KeptAnswers, open_answers
from engine.evaluation.compare.measuring import Sheet, make_sheet
from engine.evaluation.compare.searching import Found, search_all
from engine.evaluation.compare.updating import Followed, follow_updates
from engine.evaluation.questions import Question
from engine.http_errors import ServerError


@dataclass(frozen=True, slots=True)
class Compared:
    """The figures, and the answers that they are of."""

    comparison: Comparison
    sheet: Sheet
    found: Mapping[str, Found]


async def run_comparison(job: CompareJob, server: Server, listener: Listener | None = None) -> Compared:
    """Ask, measure and judge. What was asked before, in the same folder and with the same weights, is not asked again.

    Raises: UnknownArm; ValueError for a bad name of an arm; ServerUnreachable, ServerError; SwitchyardError naming the
    folder. Answers until then are kept, and documents are as they were.
    """
    listener = listener or Listener()
    with open_answers(job.folder, restart=job.restart) as kept:
        try:
            return await _run(job, server, listener, kept)
        except ServerUnreachable as error:
            if not len(kept):
                raise
            raise SwitchyardError(
                f"{error} {len(kept):,} answers are kept in {job.folder}; the same command goes on."
            ) from None


async def _run(job: CompareJob, server: Server, listener: Listener, kept: KeptAnswers) -> Compared:
    if (restored := await put_back(server, job.folder)) is not None:
        listener.working(f"put back {restored}, which an earlier run had left changed")
    cards = (await server.call("GET", "/v1/adapters"))["data"]
    index = await index_size(server, job.collection)
    contenders = choose_contenders(
        job.arms, cards, has_passages=bool(index.get("chunks")), has_examples=job.few_shot is not None
    )
    questions = draw_sample(job.questions, job.sample, job.seed)
    state = await _state(server, job.collection, index)
    options = AskOptions(max_tokens=job.max_tokens, collection=job.collection if index else None)
    ask = ContenderAsk(server, state, contenders, options, job.few_shot, job.concurrency)
    answers = await ask_all(ask, contenders, questions, kept, version=state.version, listener=listener)
    found: dict[str, Found] = {}
    if index.get("chunks") and any(each.documents for each in questions):
        listener.working("searching for the documents that questions name")
        found = await search_all(server, questions, job.collection)
    notes = await _notes(server, job, state)
    followed, skipped = await _updates(job, server, ask, contenders, listener, kept)
    refresh, more = await _refresh(job, server, listener) if index.get("chunks") else (None, [])
    sheet = make_sheet(questions, contenders, answers)
    untrusted = distrust(job, sheet)
    return Compared(
        assemble(
            job,
            sheet,
            found,
            state,
            index,
            minutes=tuning_minutes(cards, job.data),
            labels=known_labels(job.questions, cards, contenders),
            untrusted=untrusted,
            followed=followed,
            skipped=skipped,
            refresh=refresh,
            notes=[*notes, *more],
        ),
        sheet,
        found,
    )


def draw_sample(questions: Sequence[Question], size: int | None, seed: int) -> tuple[Question, ...]:
    """`size` of the questions, by chance but the same again, in the order of the file; None takes all."""
    if size is None or size >= len(questions):
        return tuple(questions)
    places = sorted(random.Random(seed).sample(range(len(questions)), size))
    return tuple(questions[place] for place in places)


async def _state(server: Server, collection: str, index: Mapping[str, int]) -> ServerState:
    base = await base_model_name(server)
    cards = (await server.call("GET", "/v1/models"))["data"]
    digest = next(card["digest"] for card in cards if card["id"] == base)
    try:
        body = {"input": "Which router is this?", "signals": False} | ({"collection": collection} if index else {})
        routed = await server.call("POST", "/v1/route", json=body)
        router = str(routed["router"])
    except ServerError:
        # A server that tells no routes still answers by them.
        router = None
    return ServerState(base, str(digest), collection, index.get("version", 0), router)


async def _updates(
    job: CompareJob,
    server: Server,
    ask: ContenderAsk,
    contenders: Sequence[Contender],
    listener: Listener,
    kept: KeptAnswers,
) -> tuple[list[Followed], list[str]]:
    if not job.updates:
        return [], []
    before = (await index_size(server, job.collection)).get("version", 0)
    try:
        return await follow_updates(
            server, ask, contenders, job.updates, collection=job.collection, folder=job.folder, listener=listener
        )
    finally:
        await _note_version(server, job, kept, before)


async def _note_version(server: Server, job: CompareJob, kept: KeptAnswers, before: int) -> None:
    """The knowledge base holds what it held before the updates, under another version."""
    try:
        kept.same_version((await index_size(server, job.collection)).get("version", 0), before)
    except SwitchyardError:
        # Answers are then asked for again, which is no error.
        return


async def _refresh(job: CompareJob, server: Server, listener: Listener) -> tuple[Refresh | None, list[str]]:
    listener.working("measuring how long one document takes to be found anew")
    try:
        return await measure_refresh(server, job.collection), []
    except ServerError as error:
        return None, [f"How long one document takes to be found anew was not measured: {error}"]


async def _notes(server: Server, job: CompareJob, state: ServerState) -> list[str]:
    now = (await index_size(server, job.collection)).get("version", 0)
    if now == state.version:
        return []
    return [
        f"The knowledge base changed while arms were asked (version {state.version} to {now}); answers with passages "
        "are of either."
    ]
