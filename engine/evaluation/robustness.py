"""Whether a router decides alike when the same question is typed otherwise, and what it costs where it does not.

The server computes the signals of each question as it was written and as it was changed; the router in hand decides by
them. A decision is worth what its arm made of the question as it was written: no answer is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.evaluation.asking import Server
from engine.evaluation.changing import KINDS, changed_texts
from engine.evaluation.evaluate import Unseen, route_table
from engine.evaluation.figures import ChangedFigures, Robustness
from engine.evaluation.fitting import route
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.questions import Question
from engine.evaluation.served import BATCH, Signals, read_served, read_signals
from engine.evaluation.table import OutcomeTable
from engine.routing.artefact import Artefact, Learned

Listener = Callable[[int, int], None]


async def measure_robustness(
    server: Server,
    artefact: Artefact,
    unseen: Unseen,
    questions: Sequence[Question],
    *,
    collection: str | None = None,
    seed: int = 0,
    listener: Listener = lambda num_read, num_texts: None,
) -> Robustness:
    """What becomes of the decisions for those questions of `unseen` whose text `questions` has, by id.

    Args:
        seed: draws the typos.
        listener: told how many texts of how many have their signals.
    Raises: TrainingDataError where the router decides nothing, no text is known, or the server answers with other
    weights or documents than the router was trained on; ServerUnreachable, ServerError.
    """
    learned = artefact.learned
    if learned is None:
        raise TrainingDataError(
            f"{artefact.name} is the best single arm, which answers whatever the question: there is no decision that "
            "another spelling could change. Leave --robustness out."
        )
    table = unseen.table
    rows, asked = _matched(table, questions)
    served = await read_served(server, collection)
    different = artefact.keys.differences(served.keys)
    if different:
        raise TrainingDataError(
            f"the server does not have what {artefact.name} was trained on: {different[0]}. Name the server and the "
            "collection that the outcomes are from: --url, --collection."
        )
    kinds: dict[str, list[tuple[int, str]]] = {kind: [] for kind in KINDS}
    for place, question in enumerate(asked):
        for kind, changed in changed_texts(question, seed).items():
            kinds[kind] += [(place, text) for text in changed]
    written = [question.question for question in asked]
    texts = [*written, *(text for pairs in kinds.values() for _, text in pairs)]
    chosen = _decisions(artefact, learned, await _signals(server, texts, collection, listener))
    known, before, later = table.take(rows), chosen[: len(written)], chosen[len(written) :]
    measured = route_table(artefact, learned, known, unseen.origin).chosen
    figures = []
    for kind, pairs in kinds.items():
        then, later = later[: len(pairs)], later[len(pairs) :]
        if pairs:
            places = np.array([place for place, _ in pairs])
            figures.append(_figures(kind, known, before, places, then))
    return Robustness(
        seed=seed,
        num_questions=len(rows),
        num_without_text=len(table) - len(rows),
        same_as_measured=known.overall.mean(before == measured),
        kinds=tuple(figures),
    )


def check_texts(outcomes: Outcomes, questions: Sequence[Question], origin: str) -> None:
    """Raises: TrainingDataError where a question of `origin` has another text than the outcomes of its id."""
    texts = {each.id: each.question for each in outcomes.questions if each.question is not None}
    for each in questions:
        if texts.get(each.id, each.question) != each.question:
            raise TrainingDataError(
                f"{origin}: question {each.id!r} has another text than in {outcomes.origin}. Name the file that the "
                "outcomes were collected from."
            )


def _matched(table: OutcomeTable, questions: Sequence[Question]) -> tuple[NDArray[np.int64], list[Question]]:
    by_id = {each.id: each for each in questions}
    rows = np.array([row for row, each in enumerate(table.ids) if each in by_id], dtype=np.int64)
    if not len(rows):
        raise TrainingDataError(
            f"none of the {len(by_id):,} questions has the id of one of the {len(table):,} outcomes (the first is "
            f"{table.ids[0]!r}). Name the file that the outcomes were collected from: --robustness QUESTIONS."
        )
    return rows, [by_id[table.ids[row]] for row in rows]


async def _signals(
    server: Server, texts: Sequence[str], collection: str | None, listener: Listener
) -> list[Mapping[str, float | None]]:
    found: list[Signals] = []
    for start in range(0, len(texts), BATCH):
        found += await read_signals(server, texts[start : start + BATCH], collection=collection)
        listener(len(found), len(texts))
    return [each.values for each in found]


def _decisions(
    artefact: Artefact, learned: Learned, signals: Sequence[Mapping[str, float | None]]
) -> NDArray[np.int32]:
    missing = [name for name in artefact.signals if name not in signals[0]]
    if missing:
        raise TrainingDataError(
            f"the server lacks signals that {artefact.name} needs ({', '.join(missing[:5])}). Load the adapters that "
            "it was trained on, or train it anew."
        )
    values = np.array([[each.get(name) for name in artefact.signals] for each in signals], dtype=np.float64)
    return route(learned.model, learned.policy, values, artefact.objective).chosen


def _figures(
    kind: str,
    table: OutcomeTable,
    before: NDArray[np.int32],
    places: NDArray[np.int64],
    then: NDArray[np.int32],
) -> ChangedFigures:
    """Of `then` [T], the decisions for changed texts of the questions at `places` [T]; several texts of one question
    count as one, by their mean.
    """
    quality = table.quality[places, then]
    rows, of_row, counts = np.unique(places, return_inverse=True, return_counts=True)
    unchanged, after = (np.bincount(of_row, each) / counts for each in (then == before[places], quality))
    was = table.quality[rows, before[rows]]
    overall = table.take(rows).overall
    return ChangedFigures(
        kind=kind,
        num_questions=len(rows),
        num_texts=len(places),
        unchanged=overall.estimate(unchanged),
        before=overall.mean(was),
        after=overall.mean(after),
        difference=overall.estimate(after - was),
    )
