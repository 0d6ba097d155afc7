"""All figures of a comparison from what was asked and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.evaluation.compare.asking import ServerState
from engine.evaluation.compare.cautions import Evidence
from engine.evaluation.compare.contenders import Contender
from engine.evaluation.compare.costs import Refresh
from engine.evaluation.compare.figures import Comparison, Setting
from engine.evaluation.compare.job import CompareJob
from engine.evaluation.compare.measuring import Sheet, arm_figures, search_figures, source_figures
from engine.evaluation.compare.pairing import bound_of, compare_pairs
from engine.evaluation.compare.recommending import recommend
from engine.evaluation.compare.searching import Found
from engine.evaluation.compare.updating import Followed, update_figures
from engine.evaluation.questions import Question


def known_labels(
    questions: Sequence[Question], cards: Sequence[Mapping[str, Any]], contenders: Sequence[Contender]
) -> frozenset[str]:
    """All that an answer to a question with a label may be: the file's labels and the compared adapters'."""
    compared = {each.adapter for each in contenders}
    known = {label for card in cards if card["name"] in compared for label in card.get("labels") or ()}
    return frozenset({question.label for question in questions if question.label is not None} | known)


def distrust(job: CompareJob, sheet: Sheet) -> dict[str, str]:
    """Why the figures of an arm cannot be believed, by its name: what the guard said, and questions trained on."""
    found = {}
    leaked = [] if job.few_shot is None else job.few_shot.leaked(sheet.questions)
    for each in sheet.contenders:
        if each.verdict in ("risky", "refuse"):
            word = "risky" if each.verdict == "risky" else "not fit for training"
            found[each.name] = f"the guard called its training data {word} (see the report of its tuning)"
        if leaked and job.few_shot is not None and each.data_digest == job.few_shot.digest:
            share = f"{len(leaked):,} of {len(sheet.questions):,} questions stand in its training data word for word"
            found[each.name] = f"{found[each.name]}; {share}" if each.name in found else share
    return found


def assemble(
    job: CompareJob,
    sheet: Sheet,
    found: Mapping[str, Found],
    state: ServerState,
    index: dict[str, int],
    *,
    minutes: Mapping[str, float],
    labels: frozenset[str],
    untrusted: Mapping[str, str],
    followed: Sequence[Followed],
    skipped: Sequence[str],
    refresh: Refresh | None,
    notes: Sequence[str],
) -> Comparison:
    """Measure every arm and pair, and say what follows."""
    arms = tuple(
        arm_figures(
            sheet,
            place,
            labels=labels,
            minutes=minutes.get(each.adapter or ""),
            untrusted=untrusted.get(each.name),
        )
        for place, each in enumerate(sheet.contenders)
    )
    pairs, bound = compare_pairs(sheet), bound_of(sheet)
    search, updates = search_figures(sheet.questions, found), update_figures(sheet.contenders, followed)
    num = len(sheet.questions)
    said = recommend(Evidence(num, arms, pairs, bound, search, updates, refresh))
    metrics: dict[str, int] = {}
    for question in sheet.questions:
        metrics[question.metric] = metrics.get(question.metric, 0) + 1
    setting = Setting(
        origin=job.origin,
        created=job.created,
        base_model=state.base_model,
        collection=job.collection,
        index=index,
        max_tokens=job.max_tokens,
        num_at_once=job.concurrency,
        num_few_shot=None if job.few_shot is None else job.num_few_shot,
        few_shot_source=job.few_shot_source,
        num_in_file=len(job.questions),
        router=state.router,
    )
    return Comparison(
        setting=setting,
        num_questions=num,
        num_groups=len(np.unique(sheet.groups)),
        metrics=metrics,
        best=max(arms, key=lambda each: each.quality.value).name,
        arms=arms,
        pairs=pairs,
        bound=bound,
        search=search,
        updates=updates,
        followed=tuple(followed),
        updates_skipped=tuple(skipped),
        refresh=refresh,
        sources=source_figures(sheet),
        notes=tuple(notes),
        verdict=said.verdict,
        tone=said.tone,
        recommended=said.arm,
    )
