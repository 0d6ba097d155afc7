"""The search-quality report: figures by definition, every file format, and errors that name file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from math import log2
from pathlib import Path

import pytest
from retrieval.stub_encoder import SETTINGS, StubEncoder
from rich.console import Console
from tiny_encoder import write_tiny_encoder

from engine.config import RetrieverSettings
from engine.errors import ConfigError
from engine.values import DocumentWrite, Evidence, Passage, Query, WriteResult
from loadtest import search_quality
from loadtest.retrieval import quality
from loadtest.retrieval.collection_files import Collection, Document, read_collection, read_squad
from loadtest.retrieval.quality import rank_chunks, rank_whole_documents, scores

QUIET = Console(quiet=True)
DENSE = SETTINGS.model_copy(update={"mode": "dense"})
CORPUS = [
    {"id": "wing", "title": "lift of a wing", "text": "lift of a wing in a slipstream of a propeller"},
    {"id": "heat", "text": "heat transfer through a slab of metal"},
    {"id": "flow", "text": "viscous flow past a flat plate"},
]
QUERIES = [{"id": "1", "text": "wing lift propeller"}, {"id": "2", "text": "heat of metal"}]
QRELS = [("1", "wing", 3), ("1", "flow", 1), ("2", "heat", 2)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    qrels = [{"query_id": query, "doc_id": document, "relevance": value} for query, document, value in QRELS]
    return (
        write(tmp_path / "corpus.jsonl", CORPUS),
        write(tmp_path / "queries.jsonl", QUERIES),
        write(tmp_path / "qrels.jsonl", qrels),
    )


# Figures


def test_ndcg_takes_the_relevance_itself_as_gain():
    found = scores({"q": {"a": 3, "b": 1}}, {"q": ["b", "x", "a"]})
    expected = (1 / log2(2) + 3 / log2(4)) / (3 / log2(2) + 1 / log2(3))
    assert found["nDCG@10"].value == pytest.approx(expected)


def test_recall_and_mrr_follow_their_definitions():
    found = scores({"q": {"a": 1, "b": 2, "c": 0}}, {"q": ["c", "a", *(f"x{i}" for i in range(8)), "b"]})
    assert found["MRR@10"].value == pytest.approx(1 / 2)
    assert found["recall@10"].value == pytest.approx(1 / 2)
    assert found["recall@100"].value == 1


def test_order_of_a_ranking_counts_whatever_the_documents_are_called():
    for ranking in (["a", "z"], ["z", "a"]):
        assert scores({"q": {ranking[0]: 1}}, {"q": ranking})["MRR@10"].value == 1
        assert scores({"q": {ranking[1]: 1}}, {"q": ranking})["MRR@10"].value == 0.5


def test_a_query_that_found_nothing_counts_as_zero():
    found = scores({"q": {"a": 1}, "r": {"a": 1}}, {"q": ["a"], "r": []})
    assert {spread.value for spread in found.values()} == {0.5}
    assert 0 <= found["nDCG@10"].p20 < 0.5 < found["nDCG@10"].p80 <= 1


# Files


def test_collection_is_read_from_jsonl_and_ids_become_text(files):
    files[0].write_text(files[0].read_text() + '{"id": 7, "title": "", "text": "seven"}\n')
    collection = read_collection(*files)
    assert collection.documents["wing"].whole() == "lift of a wing lift of a wing in a slipstream of a propeller"
    assert collection.documents["7"] == Document("", "seven")
    assert collection.queries == {"1": "wing lift propeller", "2": "heat of metal"}
    assert collection.qrels == {"1": {"wing": 3, "flow": 1}, "2": {"heat": 2}}
    assert collection.skipped == {}


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{query} 0 {document} {value}\n" for query, document, value in QRELS),
        "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{value}\n" for q, d, value in QRELS),
        "".join(json.dumps({"query_id": q, "doc_id": d, "relevance": value}) + "\n\n" for q, d, value in QRELS),
    ],
    ids=["TREC", "BEIR", "JSONL"],
)
def test_every_format_of_judgements_gives_the_same(files, text):
    files[2].write_text(text)
    assert read_collection(*files).qrels == {"1": {"wing": 3, "flow": 1}, "2": {"heat": 2}}


def test_names_of_beir_compression_and_a_provenance_line_are_understood(tmp_path, files):
    rows = [{"_provenance": {"dataset": "x"}}, *({"_id": row["id"], "text": row["text"]} for row in CORPUS)]
    corpus = tmp_path / "corpus.jsonl.gz"
    corpus.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert set(read_collection(corpus, *files[1:]).documents) == {"wing", "heat", "flow"}


def test_what_is_left_out_is_said(files):
    write(files[0], [*CORPUS, {"id": "471", "title": "", "text": " "}])
    write(files[1], [*QUERIES, {"id": "3", "text": "nobody judged this"}])
    files[2].write_text("1 0 wing 3\n1 0 gone 1\n2 0 heat 1\n3 0 flow 0\n9 0 flow 1\n")
    collection = read_collection(*files)
    assert "471" not in collection.documents and "3" not in collection.queries and "9" not in collection.qrels
    assert collection.skipped == {
        "documents without text": "1 (471)",
        "queries without a relevant document": "1 (3)",
        "judgements of queries that are not in the file": "1 (9)",
        "judged documents that are not in the corpus, which count as not found": "1 (gone)",
    }


@pytest.mark.parametrize(
    ("number", "content", "message"),
    [
        (0, b'{"id": "a", "text": "x"}\n{"id": \n', r"0:2: is not JSON"),
        (0, b'{"id": "a", "text": "x"}\n["a"]\n', r"0:2: is list, not an object"),
        (0, b'{"id": "a"}\n', r"0:1: has no text under 'text'"),
        (0, b'{"text": "x"}\n', r"0:1: has no text under 'id' or '_id'"),
        (0, b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', r"0:2: id 'a' was used"),
        (1, b'{"id": "1", "text": "x"}\n{"id": "2", "text": "\xff"}\n', r"1:2: is not UTF-8"),
        (2, b"1 0 wing 1\n1 wing\n", r"2:2: has 2 fields"),
        (2, b"1 0 wing much\n", r"2:1: relevance 'much' is no whole number"),
        (2, b"1 0 wing 1\n1 0 wing 2\n", r"2:2: document 'wing' was judged 1 for query '1' before"),
        (2, b"8 0 wing 1\n", r"2: no query has a relevant document"),
        (2, None, r"2:1: cannot be read \(No such file"),
    ],
)
def test_errors_name_file_and_line(tmp_path, files, number, content, message):
    bad = tmp_path / str(number)
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_collection(*(bad if position == number else file for position, file in enumerate(files)))


def test_a_compressed_file_that_breaks_off_is_named_with_its_line(tmp_path, files):
    whole = gzip.compress("".join(json.dumps({"id": str(i), "text": "x"}) + "\n" for i in range(99)).encode())
    broken = tmp_path / "corpus.jsonl.gz"
    broken.write_bytes(whole[: len(whole) - 9])
    with pytest.raises(ConfigError, match=r"corpus\.jsonl\.gz:\d+: cannot be read"):
        read_collection(broken, *files[1:])


def test_squad_questions_are_queries_for_their_paragraph(tmp_path):
    questions = [{"id": "q1", "question": "Why?"}, {"id": "q2", "question": "How?", "unanswerable": True}]
    file = write(tmp_path / "squad.jsonl", [{"id": "p#0", "context": "Because.", "questions": questions}])
    collection = read_squad(file)
    assert collection.documents == {"p#0": Document("", "Because.")}
    assert (collection.queries, collection.qrels) == ({"q1": "Why?"}, {"q1": {"p#0": 1}})


# Rankings


def collection_of(**documents: str) -> Collection:
    return Collection(
        {name: Document("", text) for name, text in documents.items()},
        {"q": "zebra stripes"},
        {"q": {"zebra": 1}},
    )


def test_a_document_stands_where_the_best_of_its_chunks_does():
    filler = " ".join(f"word{i}." for i in range(60))
    collection = collection_of(cat="cats and dogs", zebra=f"{filler}\n\nzebra stripes\n\n{filler}", horse="a zebra")
    ranked = rank_chunks(collection, StubEncoder(), {"dense": DENSE}, QUIET)["dense"]["q"]
    assert sorted(ranked) == ["cat", "horse", "zebra"]
    assert ranked.index("zebra") < ranked.index("cat")
    whole = rank_whole_documents(collection, StubEncoder(), QUIET)["q"]
    assert whole[0] == "horse" and len(whole) == 3


def test_chunks_are_fetched_until_there_are_documents_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quality, "DEPTH", 2)
    # The first document fills the first ranks alone, with more chunks than are asked for at first.
    many = "\n\n".join(f"zebra stripes {' '.join(f'w{i}x{j}' for j in range(20))}" for i in range(12))
    collection = collection_of(zebra=many, cat="cats", dog="dogs")
    ranked = rank_chunks(collection, StubEncoder(), {"dense": DENSE}, QUIET)["dense"]["q"]
    assert len(ranked) == 2 and ranked[0] == "zebra"


def test_what_a_deeper_search_finds_comes_behind_what_a_usual_one_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quality, "DEPTH", 2)
    found = {2: ["cat", "cat"], 4: ["dog", "cat", "cow", "cat"]}

    class Reordering:
        def __init__(self, folder: Path, encoder: StubEncoder, settings: RetrieverSettings) -> None: ...

        def write(self, collection: str, items: Sequence[DocumentWrite]) -> list[WriteResult]:
            return []

        def evidence(self, queries: Sequence[Query]) -> list[Evidence]:
            passages = [Passage("c", name, "", "", "", 0, 1, 1.0) for name in found[queries[0].k]]
            return [Evidence(tuple(passages), None, 1)]

        def close(self) -> None: ...

    monkeypatch.setattr(quality, "Retriever", Reordering)
    ranked = rank_chunks(collection_of(cat="cats"), StubEncoder(), {"hybrid": SETTINGS}, QUIET)
    assert ranked["hybrid"]["q"] == ["cat", "dog"]


# The program


def test_whole_documents_score_as_sentence_transformers_does(tmp_path, files, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("sentence_transformers", reason="install '.[bench]' for the reference")
    encoder = write_tiny_encoder(tmp_path / "encoder")
    names = ("--corpus", "--queries", "--qrels")
    arguments = [word for pair in zip(names, map(str, files), strict=True) for word in pair]
    out = tmp_path / "out.json"
    arguments += ["--model", str(encoder), "--whole-documents", "--reference", "--json", str(out)]
    assert search_quality.main(arguments) == 0
    assert "nDCG@10" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["bench"] == "search_quality" and content["collection"]["documents"] == 3
    rows = {(row["system"], row["metric"]): row["value"] for row in content["rows"]}
    for metric in quality.MEASURES:
        assert rows["switchyard", metric] == pytest.approx(rows["sentence-transformers", metric])
    assert {row["case"] for row in content["rows"]} == {"whole documents"}


def test_chunks_of_a_collection_are_scored_in_each_mode(tmp_path, files):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    options = ["--corpus", str(files[0]), "--queries", str(files[1]), "--qrels", str(files[2])]
    out = tmp_path / "out.json"
    assert search_quality.main([*options, "--model", str(encoder), "--mode", "dense", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["case"] for row in rows} == {"chunks dense"} and {row["system"] for row in rows} == {"switchyard"}
    assert all(0 <= row["p20"] <= row["p80"] <= 1 for row in rows)


def test_hybrid_searches_are_scored_once_for_each_fusion_and_weight(tmp_path, files):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    options = ["--corpus", str(files[0]), "--queries", str(files[1]), "--qrels", str(files[2])]
    options += ["--model", str(encoder), "--mode", "dense", "lexical", "hybrid"]
    out = tmp_path / "out.json"
    options += ["--fusion", "scores", "ranks", "--dense-weight", "0", "0.5", "1", "--json", str(out)]
    assert search_quality.main(options) == 0
    figures: dict[str, dict[str, float]] = {}
    for row in json.loads(out.read_text())["rows"]:
        figures.setdefault(row["case"].removeprefix("chunks "), {})[row["metric"]] = row["value"]
    hybrid = ["hybrid, scores 0", "hybrid, scores 0.5", "hybrid, scores 1", "hybrid, ranks"]
    assert list(figures) == ["dense", "lexical", *hybrid]
    assert figures["hybrid, scores 1"] == figures["dense"] != figures["lexical"] == figures["hybrid, scores 0"]


def test_fusion_is_the_configured_one_where_none_is_named(tmp_path, files):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    options = ["--corpus", str(files[0]), "--queries", str(files[1]), "--qrels", str(files[2])]
    out = tmp_path / "out.json"
    assert search_quality.main([*options, "--model", str(encoder), "--mode", "hybrid", "--json", str(out)]) == 0
    assert {row["case"] for row in json.loads(out.read_text())["rows"]} == {"chunks hybrid"}


def test_a_file_that_cannot_be_read_ends_the_program_with_one_line(tmp_path, capsys: pytest.CaptureFixture[str]):
    missing = str(tmp_path / "none.jsonl")
    assert search_quality.main(["--corpus", missing, "--queries", missing, "--qrels", missing]) == 1
    error = capsys.readouterr().err
    assert f"{missing}:1: cannot be read" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name --corpus, --queries and --qrels, or one of --squad, --faq, --dialogues, --site alone"),
        (["--corpus", "c", "--squad", "s"], "or one of --squad, --faq, --dialogues, --site alone"),
        (["--site", "t", "q", "--squad", "s"], "or one of --squad, --faq, --dialogues, --site alone"),
        (["--squad", "s", "--mode", "dense", "--fusion", "ranks"], "concern --mode hybrid, which is not asked for"),
        (["--squad", "s", "--mode", "dense", "--dense-weight", "0.5"], "concern --mode hybrid, which is not asked for"),
        (
            ["--squad", "s", "--mode", "hybrid", "--fusion", "ranks", "--dense-weight", "0.5"],
            "--dense-weight concerns --fusion scores, which is not asked for",
        ),
        (["--squad", "s", "--mode", "hybrid", "--dense-weight", "1.5"], "1.5 is not from 0 (words alone) to 1"),
        (["--squad", "s", "--mode", "hybrid", "--dense-weight", "half"], "invalid share value: 'half'"),
        (["--squad", "s", "--mode", "fuzzy"], "invalid choice: 'fuzzy'"),
    ],
)
def test_bad_usage_is_refused(arguments, message, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        search_quality.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
