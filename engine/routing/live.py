"""The router of a running server: an artefact where there is one, the score rule where it does not apply.

A value: whoever holds it puts another one in its place when the artefact changes, or what is served does.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from engine.routing.arms import Arm, parse_arm
from engine.routing.artefact import Artefact
from engine.routing.decide import Router, Serving
from engine.routing.keys import Keys
from engine.routing.needs import Needs, arms_of
from engine.routing.rule import ScoreRule
from engine.routing.signals.neighbours import TrainingNeighbours
from engine.routing.signals.questions import needs_search, question_signals
from engine.routing.signals.table import SignalTable
from engine.values import Decision, IndexInfo, Route, RouteRequest, Routing

# Routers are made for each collection that is asked; of an artefact for any collection there may be many.
_MAX_ROUTERS = 64
_NUM_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the server answers with.

    model: digest of the generator's weights. adapters: digest of each by its name. labelled: those with labels.
    neighbours: what adapters were trained on, of those whose inputs were embedded by the encoder of `index`; questions
    to collections of another encoder are near to none of it.
    """

    model: str
    index: IndexInfo
    adapters: Mapping[str, str] = field(default_factory=dict)
    labelled: Collection[str] = ()
    neighbours: Mapping[str, TrainingNeighbours] = field(default_factory=dict)

    def keys(self, collection: str) -> Keys:
        """What outcomes are measured with here. Similarities depend on encoder and chunking, not on documents."""
        index = self.index.of(collection)
        made = sha256(f"{index.encoder} {index.chunking}".encode()).hexdigest()[:_NUM_DIGITS]
        return Keys(self.model, f"{collection}/{made}", index.encoder, dict(self.adapters))

    def arms(self) -> list[str]:
        """Names of the arms that can answer. No name of an adapter may be that of an arm of the base model."""
        names = [None, *(name for name in sorted(self.adapters) if _is_adapter(name))]
        return [Arm(name, has_context).name for name in names for has_context in (False, True)]

    def listed(self) -> tuple[str, ...]:
        """Arms that can answer; an adapter with labels names one whatever the passages say."""
        arms = map(parse_arm, self.arms())
        return tuple(arm.name for arm in arms if not (arm.has_context and arm.adapter in self.labelled))


class LiveRouter:
    """Decides for batches of questions. Holds no state between them."""

    def __init__(
        self,
        *,
        min_z: float,
        max_passages: int,
        arms: Collection[str] = (),
        artefact: Artefact | None = None,
        surroundings: Surroundings | None = None,
    ) -> None:
        """
        Args:
            min_z: threshold of the score rule.
            max_passages: that a search is for unless a request says otherwise: the signals are of so many.
            arms: names of those that may be chosen where the caller leaves a choice; empty allows all.
            surroundings: None where they are not known; then the rule decides.
        """
        self._rule = ScoreRule(min_z)
        self._max_passages = max_passages
        self._only = frozenset(arms)
        self.artefact = artefact
        self.surroundings = surroundings
        self._routers: dict[str, Router] = {}
        self._neighbours = surroundings.neighbours if surroundings else {}
        self._signals = question_signals([], self._neighbours).names
        self._can_answer = surroundings.arms() if surroundings else []
        self._listed = surroundings.listed() if surroundings else ()

    def decide(self, requests: Sequence[RouteRequest], *, wants_signals: bool = False) -> Routing:
        """Choose the arm of each question; with `wants_signals` the decisions have them, whoever decides."""
        started = time.perf_counter()
        routers = [self._router(request.collection) for request in requests]
        allowed = self._allowed(routers, requests)
        reads = any(
            router is not None and router.weighs and arms for router, arms in zip(routers, allowed, strict=True)
        )
        table = self.signals(requests) if wants_signals or reads else None
        measured = time.perf_counter()
        decisions: list[Decision | None] = [None] * len(requests)
        for router in dict.fromkeys(each for each in routers if each is not None):
            rows = [row for row, each in enumerate(routers) if each is router and allowed[row]]
            values = np.empty((len(rows), len(self._signals))) if table is None else table.values[rows]
            for row, decision in zip(rows, router.decide(values, [allowed[row] for row in rows]), strict=True):
                decisions[row] = decision and _told(decision, requests[row])
        whole = [
            self._ruled(request) if decision is None else decision
            for decision, request in zip(decisions, requests, strict=True)
        ]
        if table is not None:
            whole = [replace(each, signals=row) for each, row in zip(whole, table.rows(), strict=True)]
        ended = time.perf_counter()
        timings_ms = {"signals": 1e3 * (measured - started), "route": 1e3 * (ended - measured)}
        collection = requests[0].collection if requests else ""
        keys = None if self.surroundings is None else self.surroundings.keys(collection).to_json()
        first = self._router(collection)
        name = self._rule.name if first is None else first.name
        return Routing(tuple(whole), name, self._listed, keys, timings_ms)

    def signals(self, requests: Sequence[RouteRequest]) -> SignalTable:
        """[N, F] signals of the questions, as far as their evidence tells them."""
        around = self.surroundings
        near = [around is None or _encoder_of(request, around) == around.index.encoder for request in requests]
        return question_signals(requests, self._neighbours, self._max_passages, has_neighbours=near)

    def needs(self, collection: str) -> Needs:
        """What has to be known of questions to `collection`."""
        router = self._router(collection)
        if router is None:
            return Needs(self._rule.name)
        arms = tuple(arm for arm in router.artefact.ranked if self._may(arm))
        reads = router.weighs and any(map(needs_search, router.artefact.signals))
        return Needs(router.name, arms, router.weighs, reads)

    def warning(self, default_collection: str) -> str | None:
        """Why the artefact does not decide where it should."""
        if self.artefact is None:
            return None
        if self.surroundings is None:
            return f"{self.artefact.name} does not decide yet: what is served is not known"
        router = self._router(_measured_in(self.artefact) or default_collection)
        return None if router is None else router.warning

    def _router(self, collection: str) -> Router | None:
        """The artefact for a collection; None where it says nothing about it."""
        artefact, around = self.artefact, self.surroundings
        if artefact is None or around is None or _measured_in(artefact) not in (None, collection):
            return None
        if collection not in self._routers:
            if len(self._routers) >= _MAX_ROUTERS:
                self._routers.clear()
            serving = Serving(around.keys(collection), self._can_answer, self._signals)
            self._routers[collection] = Router(artefact, serving)
        return self._routers[collection]

    def _allowed(self, routers: Sequence[Router | None], requests: Sequence[RouteRequest]) -> list[list[str]]:
        """Arms that each question's artefact may choose among; none where it has nothing to choose."""
        # Requests of a batch mostly leave the same choice.
        known: dict[tuple[Router, str | None, Route | None, bool], list[str]] = {}
        allowed: list[list[str]] = []
        for router, request in zip(routers, requests, strict=True):
            if router is None:
                allowed.append([])
                continue
            key = (router, request.model, request.pinned, _may_have_context(request))
            if key not in known:
                known[key] = self._choices(*key)
            allowed.append(known[key])
        return allowed

    def _choices(self, router: Router, model: str | None, pinned: Route | None, may_have_context: bool) -> list[str]:
        arms = [
            arm.name
            for arm in arms_of(router.artefact.arms, model, pinned)
            if self._may(arm.name) and (not arm.has_context or may_have_context)
        ]
        # Of a model that the caller named, one measured arm is no choice.
        return arms if model is None or len(arms) > 1 else []

    def _may(self, arm: str) -> bool:
        return arm in self._can_answer and (not self._only or arm in self._only)

    def _ruled(self, request: RouteRequest) -> Decision:
        evidence = None if request.missing else request.evidence
        decision = self._rule.decide(request.pinned, evidence, request.missing)
        arm = Arm(request.model or None, decision.route == "rag")
        if request.pinned is None and self._only and arm.name not in self._only:
            others = [
                each
                for each in arms_of(sorted(self._only), request.model, None)
                if self._may(each.name) and (not each.has_context or _may_have_context(request))
            ]
            if others:
                arm = others[0]
                decision = replace(decision, confidence=None, reasons=(f"router.arms allows {arm.name}",))
        return _told(replace(decision, route=arm.route, adapter=arm.adapter), request, by_rule=True)


def _told(decision: Decision, request: RouteRequest, *, by_rule: bool = False) -> Decision:
    """With what the request itself decided among the reasons."""
    reasons = decision.reasons
    confidence = decision.confidence
    if request.pinned is not None and not by_rule:
        reasons, confidence = (*reasons, f"route {request.pinned!r} pinned by the request"), None
    if request.model:
        reasons = (*reasons, f"adapter {request.model!r} named by the request")
    if reasons is decision.reasons:
        return decision
    return replace(decision, reasons=reasons, confidence=confidence)


def _encoder_of(request: RouteRequest, around: Surroundings) -> str:
    """By which the question was embedded. A search says so itself: what is served may have changed since `around`."""
    clues = None if request.evidence is None else request.evidence.clues
    said = None if clues is None else clues.encoder
    return said or around.index.of(request.collection).encoder


def _may_have_context(request: RouteRequest) -> bool:
    if request.pinned == "rag":
        return True
    found = request.can_search or (request.evidence is not None and bool(request.evidence.passages))
    return request.missing is None and found


def _measured_in(artefact: Artefact) -> str | None:
    """The collection that the artefact was measured in; None where its keys do not say."""
    collection, slash, _ = (artefact.keys.index or "").rpartition("/")
    return collection if slash else None


def _is_adapter(name: str) -> bool:
    """Whether arms can be named after an adapter."""
    try:
        return parse_arm(name).adapter == name
    except ValueError:
        return False
