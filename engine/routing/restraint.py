"""Whether a question is answered at all: not where evidence is too weak, and not before it is clear what is meant.

The decision which arm answers is another's; this one may put `abstain` or `clarify` in its place, or words before the
answer. Each is off unless the settings say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.config import RouterSettings
from engine.routing.abstain import nearest_pages, refusal, weakness
from engine.routing.abstain_files import read_evidence_head
from engine.routing.ambiguity import AmbiguityHead, Vectors
from engine.routing.ambiguity_files import read_ambiguity
from engine.routing.clarify import ShareCap, clarification, was_asked
from engine.routing.needs import Plan
from engine.routing.rule import ScoreRule
from engine.routing.signals.questions import question_signals
from engine.values import BASE_MODEL, Decision, Evidence, Message, Passage, Route, RouteRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """A question on its way to an answer.

    `question` is as it was searched, `embedding` [E] its unit row by the encoder of digest `encoder`, None where there
    is none; `messages` are the conversation. `model` is what the request names: an adapter, BASE_MODEL, or None for
    any. `is_free`: any text may answer, rather than a label or what a schema allows. The share of questions back is
    kept for each `tenant`.
    """

    question: str
    messages: Sequence[Message]
    pinned: Route | None = None
    model: str | None = None
    is_free: bool = True
    tenant: str = ""
    embedding: Vectors | None = None
    encoder: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What becomes of a question. `text` is the whole answer where `is_whole`, else what an answer begins with.

    `pages` are what a whole answer speaks of.
    """

    decision: Decision
    text: str = ""
    pages: tuple[Passage, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether no generator is asked."""
        return self.decision.route in ("clarify", "abstain")


class Restraint:
    """Applies `router.abstain`, `router.clarify` and `router.ambiguity`. Its only state is what caps count."""

    def __init__(self, settings: RouterSettings, max_passages: int | None = None) -> None:
        """
        Args:
            max_passages: of a search, that signals are made of; None for all.
        Raises: ConfigError for a head that cannot be read.
        """
        self._settings = settings
        self._max_passages = max_passages
        self._ambiguity = None if settings.ambiguity is None else read_ambiguity(settings.ambiguity)
        head = settings.abstain.head if settings.abstain.enabled else None
        self._evidence_head = None if head is None else read_evidence_head(head)
        self._caps: dict[str, ShareCap] = {}

    def plan(self, plan: Plan, model: str | None, pinned: Route | None) -> Plan:
        """`plan` with a search, where what this says may hang on one."""
        is_active = self._settings.abstain.enabled or self._ambiguity is not None
        if not is_active or pinned == "direct" or (pinned is None and not _is_base(model)):
            return plan
        reads_clues = self._ambiguity is not None or self._evidence_head is not None
        return Plan(searches=True, wants_clues=plan.wants_clues or plan.embeds or reads_clues)

    def reply(self, decision: Decision, asked: Asked, evidence: Evidence | None) -> Reply:
        """The decision as it stands, or what is said in place of an answer, or before it."""
        if asked.pinned == "direct" or not asked.is_free or evidence is None:
            return Reply(decision)
        is_base = _is_base(asked.model) and decision.adapter is None
        # An adapter knows things without passages, so only a request for passages keeps it from saying them.
        if self._settings.abstain.enabled and (is_base or asked.pinned == "rag"):
            head = self._evidence_head
            if head is not None and head.encoder != asked.encoder:
                # It knows the cosines of another encoder; the distance from the background holds for any.
                head = None
            why = weakness(
                asked.question,
                evidence,
                min_z=self._settings.abstain.min_z,
                head=head,
                max_passages=self._max_passages,
            )
            if why is not None:
                pages = nearest_pages(evidence.passages)
                return Reply(_instead(decision, "abstain", f"not in the knowledge base: {why}"), refusal(pages), pages)
            if asked.pinned is None and (decision.route, decision.router) == ("direct", ScoreRule.name):
                # The rule's bound may be the higher one; who abstains wants nothing answered from memory.
                reason = "abstaining is on, so what is not weak is answered from the passages"
                decision = replace(decision, route="rag", confidence=None, reasons=(*decision.reasons, reason))
        if self._ambiguity is None or asked.pinned is not None or not is_base:
            return Reply(decision)
        return self._unless_unclear(self._ambiguity, decision, asked, evidence)

    def _unless_unclear(self, head: AmbiguityHead, decision: Decision, asked: Asked, evidence: Evidence) -> Reply:
        settings = self._settings.clarify
        probability = self._probability(head, asked, evidence)
        found = None
        # What the passages compete for matters where they would be used.
        if decision.route == "rag" and probability is not None and probability >= settings.min_probability:
            found = clarification(asked.question, evidence.passages)
        wanted = settings.enabled and found is not None and not was_asked(asked.messages)
        cap = self._caps.setdefault(asked.tenant, ShareCap(settings.max_share, settings.window))
        may_ask = cap.admits(wanted)
        if found is None or probability is None:
            return Reply(decision)
        why = f"the question has several readings with a probability of {probability:.2f}"
        if may_ask:
            return Reply(_instead(decision, "clarify", why), found.text, found.passages)
        readings = ", ".join(repr(option) for option in found.options)
        reasons = (*decision.reasons, f"{why}: {readings}; the first is assumed")
        return Reply(replace(decision, reasons=reasons), found.assumed)

    def _probability(self, head: AmbiguityHead, asked: Asked, evidence: Evidence) -> float | None:
        """That the question has several readings; None where the head reads an embedding, and none is its encoder's."""
        embeddings = None
        if head.embedding is not None:
            if asked.embedding is None or head.embedding.encoder != asked.encoder:
                return None
            embeddings = asked.embedding[None]
        signals = question_signals([RouteRequest(asked.question, "", evidence=evidence)], {}, self._max_passages)
        return float(head.probabilities([asked.question], embeddings, signals)[0])


def _is_base(model: str | None) -> bool:
    return model in (None, BASE_MODEL)


def _instead(decision: Decision, route: Route, why: str) -> Decision:
    """The decision with another route; the confidence was that of an arm."""
    return replace(decision, route=route, adapter=None, confidence=None, reasons=(why, *decision.reasons))
