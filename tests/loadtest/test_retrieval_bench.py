"""The retrieval bench over a tiny encoder and few rows: names are the contract's, comparisons are fair."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval.stub_encoder import SETTINGS, StubEncoder
from rich.console import Console
from tiny_encoder import write_tiny_encoder

from engine.config import RetrieverSettings
from engine.errors import ConfigError
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Evidence, Query
from loadtest import bench_retrieval, gpu_retrieval
from loadtest.bench_format import OURS
from loadtest.bench_retrieval import Plan
from loadtest.retrieval import indexes, sentence_transformers_peer
from loadtest.retrieval.corpus import Pages, bench_questions, endless_copies, read_pages, take_sample
from loadtest.retrieval.filling import COLLECTION, fill
from loadtest.retrieval.indexes import IndexPlan, Timed, choice_by_size, measure_indexes
from loadtest.retrieval.synthetic import clustered_rows, size_name

REPOSITORY = Path(__file__).parents[2]
QUIET = Console(quiet=True)
TINY_INDEXES = IndexPlan((400,), (1, 4), max_calls=4, seconds_per_case=1, largest_graph=400)
TINY = Plan(8, 2, 40, 2, {1: 2, 32: 1}, TINY_INDEXES)
TINY_SETTINGS = RetrieverSettings(chunk_tokens=120, chunk_overlap_tokens=10)
PAGES = Pages(
    "two pages", (DocumentWrite("a.md", b"# Cats\n\nCats purr."), DocumentWrite("b.md", b"# Dogs\n\nDogs bark."))
)


def stub_chunker() -> Chunker:
    return Chunker(StubEncoder().tokenizer, chunk_tokens=30, overlap_tokens=5, max_tokens=64)


# The bench


def test_bench_names_rows_and_ratios_as_promised(tmp_path: Path):
    pytest.importorskip("sentence_transformers", reason="install '.[bench]' for the peer")
    model = write_tiny_encoder(tmp_path / "encoder")
    report, timed = bench_retrieval.measure(model, TINY_SETTINGS, TINY, PAGES, QUIET)
    report.write_json(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert {(ratio["case"], ratio["ours_over"], ratio["metric"]) for ratio in content["ratios"]} == {
        ("ingest", "sentence-transformers", "passages_per_s"),
        ("query 1", "raw legs", "latency_p50"),
        ("query 1", "sentence-transformers + faiss", "latency_p50"),
        ("query 32", "raw legs", "latency_p50"),
        ("query 32", "sentence-transformers + faiss", "latency_p50"),
        ("query 32", "one at a time", "queries_per_s"),
    }
    assert all(ratio["value"] > 0 for ratio in content["ratios"])
    assert content["missing_peers"] == {}
    assert content["query_chunks"] >= 40
    of_flat = [row for row in content["rows"] if row["case"] == "index flat-fp32 400 batch 4"]
    assert [row["metric"] for row in of_flat] == ["latency_p50", "latency_p99", "build", "recall@10", "memory"]
    printed = Console(file=io.StringIO(), width=200)
    bench_retrieval.print_report(report, timed, printed)
    text = printed.file.getvalue()
    assert "indexes over 400 rows" in text and "ivf-flat nprobe=4" in text and "index flat-fp32" not in text


def test_raw_legs_are_the_sum_of_both_legs(tmp_path: Path):
    model = write_tiny_encoder(tmp_path / "encoder")
    plan = Plan(4, 1, 30, 1, {1: 1}, TINY_INDEXES)
    report, _ = bench_retrieval.measure(model, TINY_SETTINGS, plan, PAGES, QUIET)
    values = {(row.system, row.metric): row.value for row in report.rows if row.case == "query 1"}
    legs = values["raw legs", "encode_p50"] + values["raw legs", "knn_p50"]
    assert values["raw legs", "latency_p50"] == pytest.approx(legs)
    assert values[OURS, "latency_p50"] > 0
    installed = {metric: value for (system, metric), value in values.items() if "+" in system}
    if installed:
        assert installed["latency_p50"] == pytest.approx(installed["encode_p50"] + values["raw legs", "knn_p50"])


def test_case_alone_measures_nothing_else(tmp_path: Path):
    model = write_tiny_encoder(tmp_path / "encoder")
    for case, names in (("index", {"index flat-fp32 400 batch 4"}), ("ingest", {"ingest"})):
        report, timed = bench_retrieval.measure(model, TINY_SETTINGS, replace(TINY, cases=(case,)), PAGES, QUIET)
        assert names <= {row.case for row in report.rows}
        assert all(row.case.startswith(case) for row in report.rows) and bool(timed) == (case == "index")


def test_absent_peer_is_named_and_gives_no_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sentence_transformers_peer, "absence", lambda: "not installed: pip install '.[bench]'")
    model = write_tiny_encoder(tmp_path / "encoder")
    report, _ = bench_retrieval.measure(model, TINY_SETTINGS, TINY, PAGES, QUIET)
    assert report.extra["missing_peers"] == {"sentence-transformers": "not installed: pip install '.[bench]'"}
    assert "ingest" not in {ratio.case for ratio in report.ratios}
    assert "sentence-transformers + faiss" not in {ratio.ours_over for ratio in report.ratios}
    assert [row.system for row in report.rows if row.case == "ingest"] == [OURS]


def test_a_peer_that_cannot_load_its_model_says_why(tmp_path: Path):
    pytest.importorskip("sentence_transformers", reason="install '.[bench]' for the peer")
    with (
        pytest.raises(RuntimeError, match=r"the process with sentence-transformers ended: .*Error"),
        sentence_transformers_peer.sentence_transformers(tmp_path, 1),
    ):
        pass


# Corpus and data folder


def test_generated_pages_follow_where_the_real_ones_do_not_suffice():
    sample = take_sample(PAGES, stub_chunker(), 40)
    assert {item.id for item in PAGES.items} <= {item.id for item in sample.items}
    assert sample.num_generated == len(sample.items) - 2 > 0
    assert len(set(sample.texts)) == len(sample.texts) >= 40
    assert take_sample(PAGES, stub_chunker(), 1).num_generated == 0
    assert take_sample(PAGES, stub_chunker(), 40) == sample


def test_copies_are_other_texts_of_the_same_shape():
    items = (DocumentWrite("a.md", b"# Cats\n\nlazy cats purr, wild dogs bark: " + b"over and over again, " * 20),)
    first, second = islice(endless_copies(items), 2)
    assert len({items[0].body, first.body, second.body}) == 3
    assert len({items[0].id, first.id, second.id}) == 3
    assert len(first.body) == len(items[0].body) and first.body[:2] == b"# "


def test_filled_folder_holds_perturbed_copies_that_the_encoder_can_search(tmp_path: Path):
    encoder = StubEncoder()
    sample = take_sample(PAGES, stub_chunker(), 30)
    vectors = encoder.encode(sample.texts)
    rows = fill(tmp_path, sample.items, vectors, 120, encoder=encoder, settings=SETTINGS, console=QUIET)
    retriever = Retriever(tmp_path, encoder, SETTINGS)
    try:
        assert retriever.status()["chunks"] == len(rows) >= 120
        (answer,) = retriever.evidence([Query(sample.texts[0], COLLECTION, 5, mode="dense")])
    finally:
        retriever.close()
    assert isinstance(answer, Evidence) and len(answer.passages) == 5
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    nearest = (rows @ vectors.T).max(axis=1)
    assert 0.8 < nearest.mean() < 0.97
    best = np.sort(rows @ encoder.encode([sample.texts[0]], is_query=True)[0])[::-1][:5]
    assert [passage.score for passage in answer.passages] == pytest.approx(best.tolist(), abs=1e-5)


def test_pages_come_from_the_archive_or_else_from_docs(tmp_path: Path):
    archive = tmp_path / "pages.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("docs/a.html.markerb", "docs/b.md", "LICENSE"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    assert [item.id for item in read_pages(archive).items] == ["docs/a.html.markerb", "docs/b.md"]
    without = read_pages(tmp_path / "none.tar.gz")
    assert "docs/ (none.tar.gz is not in" in without.origin
    assert "docs/engine.md" in {item.id for item in without.items}
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"pages\.tar\.gz: cannot be read"):
        read_pages(archive)


def test_questions_suffice_for_the_widest_batch():
    questions = bench_questions()
    assert len(set(questions)) == len(questions) >= 64


# Indexes


def test_exact_indexes_find_everything_and_sizes_are_told():
    timed = {(one.name, one.batch): one for one in measure_indexes(TINY_INDEXES, 1, QUIET)}
    for name in ("flat-fp32", "gemm-fp32"):
        assert timed[name, 1].recall == timed[name, 4].recall == 1
    assert timed["gemm-fp16", 4].bytes_per_row == 768 and timed["flat-fp32", 4].bytes_per_row == 1536
    assert timed["hnsw32 ef=256", 4].recall > 0.9 and timed["hnsw32 ef=256", 4].bytes_per_row > 1536
    assert timed["frozen shard", 4].recall == 1 and 1569 < timed["frozen shard", 4].bytes_per_row < 1700
    assert timed["ivf-flat nprobe=1", 4].recall <= timed["ivf-flat nprobe=64", 4].recall == 1


def test_graph_is_left_out_above_the_size_that_the_plan_allows():
    plan = IndexPlan((400,), (1,), max_calls=3, seconds_per_case=1, largest_graph=399)
    assert not [one for one in measure_indexes(plan, 1, QUIET) if one.name.startswith("hnsw")]


def test_recall_counts_what_a_search_misses():
    queries = np.eye(8, dtype=np.float32)
    exact = np.tile(np.arange(10), (8, 1))
    half = np.where(np.arange(10) < 5, np.arange(10), 99)
    plan = IndexPlan((8,), (2,), max_calls=5, seconds_per_case=1, largest_graph=0)
    recall, latencies_ms = indexes._time(lambda asked: np.tile(half, (len(asked), 1)), queries, exact, 2, plan)
    assert (recall, len(latencies_ms)) == (0.5, 5)


def test_exact_search_is_kept_up_to_what_takes_the_budget_at_the_largest_size():
    def one(name: str, size: int, batch: int, ms: float) -> Timed:
        return Timed(name, size, batch, 0.0, 1536.0, 1.0, [ms])

    timed = [one("flat-fp32", 100, 1, 3.0), one("gemm-fp32", 1000, 1, 50.0), one("ivf", 1000, 1, 0.1)]
    assert indexes.freezing_size([*timed, one("flat-fp32", 1000, 1, 60.0), one("flat-fp32", 1000, 8, 1.0)]) == 500
    assert indexes.freezing_size([one("ivf", 1000, 1, 0.1)]) is None


def test_choice_is_the_fastest_index_that_is_good_enough():
    def one(name: str, recall: float, ms: float) -> Timed:
        return Timed(name, 10_000, 1, 0.0, 1536.0, recall, [ms])

    choice = choice_by_size(
        [one("flat", 1.0, 9.0), one("slow", 1.0, 10.0), one("ivf", 0.96, 2.0), one("bad", 0.5, 1.0)]
    )
    assert choice["10k batch 1 recall >= 0.999"].startswith("flat (9 ms")
    assert choice["10k batch 1 recall >= 0.95"].startswith("ivf (2 ms")
    assert choice_by_size([one("bad", 0.5, 1.0)])["10k batch 1 recall >= 0.95"] == "none"


def test_synthetic_rows_are_unit_clusters_that_a_seed_repeats():
    rows, queries = clustered_rows(900, 50, dim=64, dtype=torch.float32)
    again, _ = clustered_rows(900, 50, dim=64, dtype=torch.float16)
    assert torch.allclose(rows.norm(dim=1), torch.ones(900), atol=1e-5)
    assert torch.allclose(rows, again.float(), atol=1e-3)
    # A row of the same cluster is near every query, which no row of another cluster is.
    assert (queries @ rows.T).max(dim=1).values.min() > 0.5


@pytest.mark.parametrize(("number", "name"), [(10_000, "10k"), (1_000_000, "1M"), (1_500, "1500"), (400, "400")])
def test_sizes_are_named_as_people_say_them(number: int, name: str):
    assert size_name(number) == name


# The script for a GPU


def test_dry_run_checks_parity_and_times_every_dtype(tmp_path: Path):
    command = [sys.executable, "-m", "loadtest.gpu_retrieval", "--dry-run", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert set(content["parity"]) == {
        *(f"torch {dtype} {size}" for dtype in ("fp32", "fp16", "bf16") for size in ("2k", "5k")),
        *(f"engine fp16 {size}" for size in ("2k", "5k")),
    }
    assert set(content["parity"].values()) == {"recall@10 1.0000"}
    assert "torch alone" in content["faiss"] or "knn_gpu" in content["faiss"]
    assert {row["case"] for row in content["rows"]} >= {"index flat-fp16 5k batch 4", "index flat-fp32 2k batch 1"}
    assert {row["case"] for row in content["rows"] if row["system"] == "engine"} >= {"index flat-fp16 2k batch 1"}


@pytest.mark.parametrize("dtype", list(gpu_retrieval.DTYPES.values()))
def test_search_in_blocks_finds_what_float32_finds(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    monkeypatch.setattr(gpu_retrieval, "_BLOCK_ROWS", 97)
    rows, queries = clustered_rows(1_000, 20, dtype=dtype)
    found = gpu_retrieval.torch_search(rows, queries)
    expected = (queries @ rows.float().T).topk(10).indices
    assert [set(mine) for mine in found.tolist()] == [set(mine) for mine in expected.tolist()]


def wrong_rows(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    return gpu_retrieval.torch_search(rows, -queries)


def repeated_rows(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    return gpu_retrieval.torch_search(rows, queries)[:, :1].expand(-1, 10)


@pytest.mark.parametrize("search", [wrong_rows, repeated_rows])
def test_a_search_that_misses_rows_ends_the_script(
    monkeypatch: pytest.MonkeyPatch, search: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
):
    rows, queries = clustered_rows(500, 8, dtype=torch.float32)
    assert gpu_retrieval.parity(lambda asked: search(rows, asked), rows, queries) == 0
    right = gpu_retrieval.torch_search
    monkeypatch.setattr(gpu_retrieval, "torch_search", lambda rows, asked: right(rows, -asked))
    assert gpu_retrieval.main(["--dry-run", "--rows", "500", "--dtypes", "fp32"]) == 1


def test_search_without_time_left_is_skipped_and_said(tmp_path: Path):
    arguments = [
        "--dry-run",
        "--rows",
        "500",
        "--dtypes",
        "fp16",
        "--budget-s",
        "0",
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert gpu_retrieval.main(arguments) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["skipped"] == {"fp16 500": "no time left"} and content["rows"] == []


def test_without_a_gpu_the_way_out_is_named(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        gpu_retrieval.main([])
    assert "--dry-run searches a few rows on the CPU" in capsys.readouterr().err
