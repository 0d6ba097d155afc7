"""Followers against the writing retriever, under whatever sequence of writes, starts and steps hypothesis finds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from retriever_moves import COLLECTIONS, QuickEncoder, batches, drop_collection, filters, questions, wheres
from stub_encoder import SETTINGS

from engine.errors import RequestError
from engine.retrieval.following import Follower
from engine.retrieval.service import Retriever
from engine.values import Evidence, Query

MAX_FOLLOWERS = 3


class FollowingModel(RuleBasedStateMachine):
    """One retriever that writes, and followers that start and catch up at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.encoder = QuickEncoder()
        self.followers: list[Follower] = []
        self.open()
        self.start_follower()

    def open(self) -> None:
        self.retriever = Retriever(self.folder / "data", self.encoder, SETTINGS)

    @rule(where=wheres, items=batches)
    def write(self, where, items) -> None:
        self.retriever.write(where[0], items, tenant=where[1])

    @precondition(lambda self: self.followers)
    @rule(where=wheres, first=batches, second=batches)
    def write_twice_and_catch_up_after_each(self, where, first, second) -> None:
        for items in (first, second):
            self.write(where, items)
            self.catch_up(0)

    @rule(name=st.sampled_from(COLLECTIONS))
    def drop(self, name) -> None:
        if name in self.retriever._live:
            self.retriever.close()
            drop_collection(self.folder / "data", name)
            self.open()

    @rule(where=wheres, weight=st.sampled_from((0.0, 0.3, 1.0, None)))
    def fit(self, where, weight) -> None:
        if where[0] in self.retriever._live:
            made_for = {"encoder": self.encoder.identity.digest, "default_alpha": self.retriever._alpha}
            # Judgements that change nothing: only the outcome of the fit matters here.
            self.retriever._judging._judgements.clear(*where)
            assert self.retriever._judging._judgements.save_fit(*where, self.revision(where), weight, made_for)
            self.retriever._live[where[0]].use_alpha(where[1], weight)

    def revision(self, where) -> int:
        return self.retriever._judging._judgements.grades(*where, 1)[0]

    @precondition(lambda self: len(self.followers) < MAX_FOLLOWERS)
    @rule()
    def start_follower(self) -> None:
        self.followers.append(Follower(self.folder / "data", self.encoder, SETTINGS))

    @precondition(lambda self: self.followers)
    @rule(number=st.integers(0, MAX_FOLLOWERS - 1))
    def stop_follower(self, number) -> None:
        if number < len(self.followers):
            self.followers.pop(number).close()

    @precondition(lambda self: self.followers)
    @rule(number=st.integers(0, MAX_FOLLOWERS - 1))
    def catch_up(self, number) -> None:
        follower = self.followers[number % len(self.followers)]
        follower.catch_up()
        assert held(follower) == held(self.retriever)

    @precondition(lambda self: self.followers)
    @rule(where=wheres, question=questions, k=st.sampled_from((1, 3, 1000)), wanted=filters, data=st.data())
    def search_together(self, where, question, k, wanted, data) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        follower.catch_up()
        assert held(follower) == held(self.retriever)
        for mode in ("dense", "lexical", "hybrid"):
            query = Query(question, where[0], k, filter=wanted, tenant=where[1], mode=mode)
            (mine,), (theirs,) = follower.evidence([query]), self.retriever.evidence([query])
            if isinstance(theirs, RequestError):
                assert type(mine) is type(theirs) and str(mine) == str(theirs)
                continue
            assert isinstance(mine, Evidence) and isinstance(theirs, Evidence)
            assert (mine.version, mine.background) == (theirs.version, theirs.background)
            if mode == "dense":
                assert mine.passages == theirs.passages
                assert mine.similarities == theirs.similarities
            elif k == 1000:
                # How rare a word is counts chunks that are gone until files merge: scores differ a little, hits do not.
                assert {one.chunk for one in mine.passages} == {one.chunk for one in theirs.passages}

    @precondition(lambda self: self.followers)
    @rule(where=wheres, question=questions)
    def search_behind(self, where, question) -> None:
        """A follower that has not caught up shows a version that there was, and only texts that there are."""
        (found,) = self.followers[0].evidence([Query(question, where[0], 1000, tenant=where[1])])
        if isinstance(found, Evidence):
            assert found.version >= 1
            for passage in found.passages:
                document = self.followers[0].get_document(where[0], passage.document, tenant=where[1])
                assert document["text"][passage.start : passage.end] == passage.text

    @invariant()
    def every_chunk_is_known_by_its_document(self) -> None:
        for follower in self.followers:
            for followed in follower._followed.values():
                assert sum(len(keys) for keys in followed.keys.values()) == followed.live.num_chunks

    def teardown(self) -> None:
        for follower in self.followers:
            follower.close()
        self.retriever.close()
        shutil.rmtree(self.folder)


def held(reader: Retriever | Follower) -> dict[tuple[str, str], tuple[int, int]]:
    """Documents and chunks by collection and tenant, as searches may find them."""
    return {
        (name, tenant): (len(shelf.metadata), len(shelf.rows))
        for name, live in reader._live.items()
        for tenant, shelf in live._shelves.items()
        if len(shelf.metadata)
    }


FollowingModel.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFollowersAgreeWithTheRetrieverThatWrites = FollowingModel.TestCase
