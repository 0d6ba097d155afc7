"""Another generation of a collection: built beside the one that is searched, switched to, taken back, dropped."""

from __future__ import annotations

from functools import partial

import pytest
from executors import HeldExecutor, ImmediateExecutor
from interrupting import interrupt
from sqlalchemy import func, select
from stub_encoder import DIM, SETTINGS, StubEncoder

from engine.errors import Conflict, InvalidRequest, UnknownCollection, UnknownGeneration
from engine.retrieval.service import Retriever
from engine.retrieval.store import generations as rows
from engine.retrieval.store import tables
from engine.values import DocumentWrite, Evidence, Judgement, Query

NUM_PAGES = 40
FIRST = SETTINGS.model_copy(update={"model": "first"})


class BlindEncoder(StubEncoder):
    """Sees next to nothing of a text: all vectors are nearly the same."""

    def _direction(self, word):
        return super()._direction(word[:1])


def load(model: str) -> StubEncoder:
    return BlindEncoder(model) if model == "blind" else StubEncoder(model)


@pytest.fixture
def opened(open_retriever):
    """Opens a retriever whose generations are built at once, and whose encoders are stubs by name."""

    def open_one(dense_weight: float = 0.5, **options) -> Retriever:
        options = {"building": ImmediateExecutor(), "fitting": ImmediateExecutor(), **options}
        settings = FIRST.model_copy(update={"dense_weight": dense_weight})
        return open_retriever(StubEncoder("first"), settings, load_encoder=load, **options)

    return open_one


def page(number: int, saying: str = "and more") -> DocumentWrite:
    body = f"# Page {number}\n\nword{number} about things{number % 7} {saying}. ".encode()
    return DocumentWrite(f"site/{number}", body + b"Other words go on for a while. " * (number % 5))


def fill(retriever: Retriever, tenant: str = "") -> None:
    retriever.write("docs", [page(number) for number in range(NUM_PAGES)], tenant=tenant)


def judge(retriever: Retriever, count: int = NUM_PAGES) -> None:
    judged = [Judgement(f"word{number}", f"site/{number}", 1) for number in range(count)]
    retriever.judge("docs", judged)


def ask(retriever: Retriever, text: str, k: int = 3, **fields) -> Evidence:
    (found,) = retriever.evidence([Query(text, "docs", k, **fields)])
    assert isinstance(found, Evidence), found
    return found


def current(retriever: Retriever) -> dict:
    (one,) = [each for each in retriever.generations.list("docs") if each["state"] == "current"]
    return one


def num_rows(retriever: Retriever, table) -> int:
    with retriever._store.reading() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_another_encoder_takes_over_and_the_old_generation_is_kept(opened):
    retriever = opened()
    fill(retriever)
    fill(retriever, "acme")
    version = ask(retriever, "word5").version
    job = retriever.job(retriever.generations.build("docs", model="second", switch="always"))
    assert (job["kind"], job["state"], job["done"], job["total"]) == ("generation", "done", 80, 80)
    assert (job["progress"], job["version"], job["errors"]) == (1.0, version + 1, [])
    first, second = retriever.generations.list("docs")
    assert (first["state"], first["encoder"], second["state"], second["encoder"]) == (
        "kept",
        "first",
        "current",
        "second",
    )
    assert second["report"]["is_switched"] and second["report"]["why"].startswith("it was asked for")
    before = ask(retriever, "page 5 word5", mode="dense")
    for tenant in ("", "acme"):
        found = ask(retriever, "page 5 word5", mode="dense", tenant=tenant)
        assert (found.version, found.passages[0].document) == (version + 1, "site/5")
        question, text = StubEncoder("second").encode(["page 5 word5", f"Page 5\n{found.passages[0].text}"])
        assert found.passages[0].score == pytest.approx(float(question @ text), abs=1e-5)
    retriever.close()
    assert ask(opened(), "page 5 word5", mode="dense").passages == before.passages


def test_other_chunk_sizes_change_the_chunks_and_their_number(opened):
    retriever = opened()
    fill(retriever)
    chunks = retriever.collection("docs")["chunks"]
    retriever.generations.build("docs", chunk_tokens=16, chunk_overlap_tokens=0, switch="always")
    assert (current(retriever)["chunk_tokens"], current(retriever)["model"]) == (16, "first")
    assert retriever.collection("docs")["chunks"] > chunks
    assert retriever.status()["chunks"] == retriever.collection("docs")["chunks"]
    long = retriever.write("docs", [DocumentWrite("long", b"Some words in a row. " * 20)])[0]
    assert long.chunks == retriever.get_document("docs", "long")["chunks"] > 5


def test_a_generation_that_is_not_worse_takes_over_and_one_that_is_does_not(opened):
    retriever = opened(dense_weight=1.0)
    fill(retriever)
    judge(retriever)
    retriever.generations.build("docs", model="blind")
    one = retriever.generations.list("docs")[1]
    found = one["report"]["evaluation"]["default"]
    assert (one["state"], one["report"]["is_switched"], found["num_queries"]) == ("kept", False, NUM_PAGES)
    assert found["new"] < found["old"] and found["gain_high"] < 0
    assert "use docs 2" in one["report"]["why"] and current(retriever)["generation"] == 1
    retriever.generations.build("docs", model="second")
    three = current(retriever)
    assert (three["generation"], three["report"]["is_switched"]) == (3, True)
    assert three["report"]["evaluation"]["default"]["gain_high"] >= 0


def test_refitted_weights_are_compared_where_a_tenant_has_enough_judgements(opened, monkeypatch):
    monkeypatch.setattr("engine.retrieval.generations.evaluating.MIN_JUDGED", 30)
    retriever = opened()
    fill(retriever)
    judge(retriever)
    retriever.generations.build("docs", model="blind")
    fitted = retriever.generations.list("docs")[1]["report"]["evaluation"]["fitted"]
    # Words alone find each page: with its own weight even a blind encoder does no harm.
    assert (fitted["num_queries"], fitted["old"], fitted["new"]) == (20, 1.0, 1.0)


@pytest.mark.parametrize(
    ("num_judged", "why"), [(0, "no query of the collection is judged"), (29, "29 judged queries say")]
)
def test_without_enough_judgements_nothing_is_switched_and_the_report_says_how(opened, num_judged, why):
    retriever = opened()
    fill(retriever)
    if num_judged:
        judge(retriever, num_judged)
    retriever.generations.build("docs", model="second")
    report = retriever.generations.list("docs")[1]["report"]
    assert report["why"].startswith(why) and report["why"].endswith("switchyard generations use docs 2")
    assert current(retriever)["generation"] == 1


def test_rollback_after_further_writes_loses_none_of_them(opened):
    retriever = opened()
    fill(retriever)
    retriever.generations.build("docs", model="second", chunk_tokens=20, switch="always")
    retriever.write(
        "docs", [page(1, "changed since"), DocumentWrite("site/2", delete=True), DocumentWrite("empty", b" ")]
    )
    retriever.write("docs", [page(100)])
    version = ask(retriever, "word1").version
    job = retriever.job(retriever.generations.use("docs", 1))
    assert (job["state"], job["done"], job["version"]) == ("done", 2, version + 1)
    assert (current(retriever)["generation"], current(retriever)["encoder"]) == (1, "first")
    assert "changed since" in ask(retriever, "word1").passages[0].text
    assert ask(retriever, "word100").passages[0].document == "site/100"
    assert all(one.document != "site/2" for one in ask(retriever, "word2", k=999).passages)
    rows_ = retriever.list_documents("docs", source=None, after=None, limit=99)
    assert sum(row["chunks"] for row in rows_) == retriever.status()["chunks"]


def test_a_generation_that_was_only_built_is_used_later(opened):
    retriever = opened()
    fill(retriever)
    retriever.generations.build("docs", model="second", switch="never")
    assert current(retriever)["generation"] == 1
    retriever.write("docs", [page(100)])
    retriever.generations.use("docs", 2)
    two = current(retriever)
    assert (two["generation"], two["report"]["is_switched"]) == (2, False)
    assert ask(retriever, "word100", mode="dense").passages[0].document == "site/100"


def test_dropping_a_generation_removes_its_chunks_and_the_vectors_that_nothing_needs(opened):
    retriever = opened()
    fill(retriever)
    retriever.write("other", [page(3)])
    before = [num_rows(retriever, table) for table in (tables.chunks, tables.embeddings)]
    retriever.generations.build("docs", model="second", chunk_tokens=20, switch="never")
    assert num_rows(retriever, tables.embeddings) > before[1]
    with pytest.raises(Conflict, match=r"generation 1 of collection 'docs' is the current one. Use another one first"):
        retriever.generations.drop("docs", 1)
    assert retriever.generations.drop("docs", 2)["generation"] == 2
    assert [num_rows(retriever, table) for table in (tables.chunks, tables.embeddings)] == before
    with pytest.raises(UnknownGeneration, match="no generation 2; kept: 1"):
        retriever.generations.use("docs", 2)
    # Its number is not given out again.
    retriever.generations.build("docs", model="second", switch="always")
    assert current(retriever)["generation"] == 3
    retriever.generations.drop("docs", 1)
    with retriever._store.reading() as connection:
        used = connection.execute(select(tables.embeddings.c.encoder).distinct()).scalars().all()
    assert sorted(used) == sorted(StubEncoder(name).identity.digest for name in ("first", "second"))
    assert ask(retriever, "word3").passages[0].document == "site/3"


def test_one_build_at_a_time_and_the_second_is_told_which(opened):
    held = HeldExecutor()
    retriever = opened(building=held)
    fill(retriever)
    job = retriever.generations.build("docs", model="second")
    for begin in (
        lambda: retriever.generations.build("docs", model="third"),
        lambda: retriever.generations.use("docs", 2),
    ):
        with pytest.raises(Conflict, match=rf"generation 2 .* \(job {job}\). Wait for it, or cancel it"):
            begin()
    with pytest.raises(Conflict, match=r"is being built. Cancel that first"):
        retriever.generations.drop("docs", 2)
    assert retriever.cancel_job(job)["state"] == "cancelled"
    held.run()
    assert current(retriever)["generation"] == 1 and num_rows(retriever, tables.chunks) == retriever.status()["chunks"]
    retriever.generations.drop("docs", 2)


def test_what_cannot_be_built_is_refused_with_what_is_wrong(opened):
    retriever = opened()
    fill(retriever)
    with pytest.raises(UnknownCollection):
        retriever.generations.build("nothing", model="second")
    with pytest.raises(InvalidRequest, match=r"generation 1 of collection 'docs' is made by first with .* already"):
        retriever.generations.build("docs")
    with pytest.raises(InvalidRequest, match="chunk_overlap_tokens=20 must be below chunk_tokens=16"):
        retriever.generations.build("docs", chunk_tokens=16, chunk_overlap_tokens=20)
    job = retriever.job(retriever.generations.build("docs", chunk_tokens=500))
    assert job["state"] == "failed" and "chunk_tokens=500 does not fit into this encoder" in job["errors"][0]["error"]
    with pytest.raises(UnknownGeneration, match="has no generation 7; kept: 1, 2"):
        retriever.generations.use("docs", 7)
    with pytest.raises(InvalidRequest, match="generation 1 of collection 'docs' is the current one already"):
        retriever.generations.use("docs", 1)


def test_document_that_changes_whenever_it_is_cut_ends_up_as_it_was_written_last(opened):
    retriever = opened()
    fill(retriever)
    changes = {look: partial(retriever.write, "docs", [page(1, f"changed{look} since")]) for look in range(1, 20)}
    stop = interrupt(retriever, changes)
    retriever.generations.build("docs", model="second", switch="always")
    assert current(retriever)["generation"] == 2 and stop.num_looks > 5
    said = {word for one in ask(retriever, "word1", k=999).passages for word in one.text.split() if "changed" in word}
    assert said == {f"changed{min(stop.num_looks, 19)}"}
    documents = retriever.list_documents("docs", source=None, after=None, limit=99)
    assert sum(row["chunks"] for row in documents) == retriever.status()["chunks"]


def test_no_more_generations_are_kept_than_allowed(opened, monkeypatch):
    monkeypatch.setattr(rows, "MAX_KEPT", 2)
    retriever = opened()
    fill(retriever)
    retriever.generations.build("docs", model="second", switch="always")
    with pytest.raises(Conflict, match=r"has 2 generations, as many as are kept. Drop one of 1 first"):
        retriever.generations.build("docs", model="third")


def test_weight_that_was_fitted_goes_with_its_encoder(opened, monkeypatch):
    monkeypatch.setattr("engine.retrieval.judging.MIN_JUDGED", 30)
    monkeypatch.setattr("engine.retrieval.fitting.MIN_JUDGED", 30)
    retriever = opened()
    fill(retriever)
    judge(retriever)
    assert retriever.judgements("docs")["weight"] is not None
    retriever.generations.build("docs", chunk_tokens=20)
    assert retriever._live["docs"]._fitted == {"": retriever.judgements("docs")["weight"]}
    held = HeldExecutor()
    retriever._judging._executor = held
    retriever.generations.build("docs", model="second", chunk_tokens=20)
    assert current(retriever)["encoder"] == "second" and retriever._live["docs"]._fitted == {}
    assert retriever.judgements("docs")["is_fitting"]
    held.run()
    assert retriever._live["docs"]._fitted == {"": retriever.judgements("docs")["weight"]}


def test_documents_are_cut_anew_as_a_first_ingest_would_cut_them(opened, tmp_path):
    rows_ = b"name,price\nvolume,3\nsnapshot,5\ndisk,7\nnetwork,9\n" * 4
    items = [
        DocumentWrite("a.md", b"# One\n\nSome words.\n\n## Two\n\nOther words here. " * 3, metadata={"k": 1}),
        DocumentWrite("b.csv", rows_, "text/csv"),
        DocumentWrite("c.html", b"<h1>Top</h1><p>Words.</p><h2>Low</h2><p>More words.</p>", "text/html"),
        DocumentWrite("d.txt", b"# No heading here\n\nplain text", "text/plain", title="Plain"),
        DocumentWrite("e.jsonl", b'{"name": "a", "text": "some words"}\n' * 5, "application/jsonl"),
    ]
    retriever = opened()
    retriever.write("docs", items)
    retriever.generations.build("docs", chunk_tokens=16, chunk_overlap_tokens=2, switch="always")
    other = SETTINGS.model_copy(update={"model": "first", "chunk_tokens": 16, "chunk_overlap_tokens": 2})
    fresh = Retriever(tmp_path / "fresh", StubEncoder("first"), other)
    fresh.write("docs", items)
    assert chunks_of(retriever) == chunks_of(fresh)
    fresh.close()


def chunks_of(retriever: Retriever) -> list[tuple]:
    k, d, c = tables.chunks, tables.documents, tables.collections
    query = (
        select(d.c.id, k.c.ordinal, k.c.id, k.c.start, k.c.end, k.c.heading, k.c.text_hash, d.c.num_chunks)
        .join(d, d.c.pk == k.c.document_pk)
        .join(c, (c.c.id == d.c.collection) & (c.c.generation == k.c.generation))
        .order_by(d.c.id, k.c.ordinal)
    )
    with retriever._store.reading() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_documents_stored_before_their_outline_was_keep_the_headings_of_their_chunks(opened):
    retriever = opened()
    retriever.write("docs", [DocumentWrite("b.csv", b"name,price\nvolume,3\nsnapshot,5\ndisk,7\n" * 9, "text/csv")])
    with retriever._store.writing() as connection:
        connection.execute(tables.documents.update().values(outline=None))
    before = {row[5] for row in chunks_of(retriever)}
    retriever.generations.build("docs", chunk_tokens=16, chunk_overlap_tokens=0, switch="always")
    after = {row[5] for row in chunks_of(retriever)}
    assert after and after <= before


def test_vectors_of_another_size_take_over(opened):
    class Wide(StubEncoder):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.dim = 2 * DIM

        def encode(self, texts, *, is_query=False):
            rows_ = super().encode(texts, is_query=is_query)
            import numpy as np

            return np.concatenate([rows_, rows_], axis=1) / np.sqrt(2).astype(np.float32)

    retriever = opened()
    retriever._encoders._load = Wide
    fill(retriever)
    retriever.generations.build("docs", model="wide", switch="always")
    assert ask(retriever, "word3", mode="dense").passages[0].document == "site/3"
    assert retriever.embed(["word3"], "docs").shape == (1, 2 * DIM)
    retriever.write("docs", [page(50)])
    retriever.generations.use("docs", 1)
    assert ask(retriever, "word50", mode="dense").passages[0].document == "site/50"
