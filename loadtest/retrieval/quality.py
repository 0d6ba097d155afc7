"""Rankings of a judged collection, and how good they are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import ir_measures
import numpy as np
from rich.console import Console

from engine.cli.judged_files import Qrels
from engine.config import RetrieverSettings
from engine.errors import RequestError
from engine.retrieval.encoding.protocol import EncoderLike, Vectors
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Query, SearchMode
from loadtest.bench_format import Spread
from loadtest.measures import percentile
from loadtest.retrieval.collection_files import Collection
from loadtest.retrieval.filling import COLLECTION, write_all
from loadtest.retrieval.progress import progress_bar
from loadtest.retrieval.sentence_transformers_peer import SentenceTransformersPeer

DEPTH = 100
# `log2` takes the judged relevance itself as gain (trec_eval's nDCG); `exp-log2` would take 2^relevance - 1.
MEASURES = {
    "nDCG@10": ir_measures.nDCG(dcg="log2") @ 10,
    "MRR@10": ir_measures.RR @ 10,
    "recall@5": ir_measures.R @ 5,
    "recall@10": ir_measures.R @ 10,
    "recall@100": ir_measures.R @ 100,
}
_TEXTS_PER_CALL = 256
_QUERIES_PER_CALL = 64
_DRAWS = 1000

# Query id to document ids, best first.
Rankings = dict[str, list[str]]


def rank_whole_documents(collection: Collection, encoder: EncoderLike, console: Console) -> Rankings:
    """Each document one vector: title and text, cut off where the encoder stops reading."""
    texts = [document.whole() for document in collection.documents.values()]
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    with progress_bar(console, f"embedding {len(texts):,} documents", len(texts)) as advance:
        for first in range(0, len(texts), _TEXTS_PER_CALL):
            part = texts[first : first + _TEXTS_PER_CALL]
            vectors[first : first + len(part)] = encoder.encode(part)
            advance(len(part))
    rows = CpuRows(encoder.dim)
    rows.append(np.arange(len(texts)), vectors)
    queries = encoder.encode(list(collection.queries.values()), is_query=True)
    keys, _ = rows.search(queries, DEPTH)
    ids = list(collection.documents)
    return {query: [ids[key] for key in mine] for query, mine in zip(collection.queries, keys.tolist(), strict=True)}


def rank_by_sentence_transformers(collection: Collection, library: SentenceTransformersPeer) -> Rankings:
    """The same set-up by the library itself, and by numpy: the reference."""
    documents = library.vectors([document.whole() for document in collection.documents.values()], "encode_document")
    queries = library.vectors(list(collection.queries.values()), "encode_query")
    ids = list(collection.documents)
    return {query: _best(vector, documents, ids) for query, vector in zip(collection.queries, queries, strict=True)}


def _best(query: Vectors, documents: Vectors, ids: Sequence[str]) -> list[str]:
    order = np.argsort(-(documents @ query), kind="stable")[:DEPTH]
    return [ids[position] for position in order.tolist()]


def rank_chunks(
    collection: Collection,
    encoder: EncoderLike,
    searches: Mapping[str, RetrieverSettings],
    console: Console,
) -> dict[str, Rankings]:
    """Documents through a retriever, ranked by each of `searches`. A document stands where the best of its chunks does.

    What is ingested once is opened with the settings of each search in turn: they may differ in mode and fusion alone.
    """
    items = [
        DocumentWrite(
            name, (document.text or document.title).encode(), document.content_type, title=document.title or None
        )
        for name, document in collection.documents.items()
    ]
    rankings = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, settings) in enumerate(searches.items()):
            with closing(Retriever(Path(folder), encoder, settings)) as retriever:
                if number == 0:
                    _ingest(retriever, items, console)
                rankings[name] = _rank_in(retriever, collection, settings.mode, name, console)
    return rankings


def _ingest(retriever: Retriever, items: Sequence[DocumentWrite], console: Console) -> None:
    with progress_bar(console, f"ingesting {len(items):,} documents", len(items)) as advance:
        for first in range(0, len(items), _TEXTS_PER_CALL):
            write_all(retriever, items[first : first + _TEXTS_PER_CALL])
            advance(len(items[first : first + _TEXTS_PER_CALL]))


def _rank_in(retriever: Retriever, collection: Collection, mode: SearchMode, name: str, console: Console) -> Rankings:
    rankings: Rankings = {}
    queries = list(collection.queries.items())
    with progress_bar(console, f"asking {len(queries):,} queries, {name}", len(queries)) as advance:
        for first in range(0, len(queries), _QUERIES_PER_CALL):
            part = queries[first : first + _QUERIES_PER_CALL]
            rankings |= _documents(retriever, dict(part), mode)
            advance(len(part))
    return rankings


def _documents(retriever: Retriever, queries: Mapping[str, str], mode: SearchMode) -> Rankings:
    """DEPTH documents for each query, or as many as are found: more chunks are asked for until there are enough.

    A hybrid search for more than FUSED_DEPTH chunks joins longer legs than users get, so what it finds comes behind.
    """
    rankings: Rankings = {query: [] for query in queries}
    waiting = dict(queries)
    k = DEPTH
    while waiting:
        answers = retriever.evidence([Query(text, COLLECTION, k, mode=mode) for text in waiting.values()])
        for query, answer in zip(list(waiting), answers, strict=True):
            if isinstance(answer, RequestError):
                raise answer
            ranked = dict.fromkeys([*rankings[query], *(passage.document for passage in answer.passages)])
            rankings[query] = list(ranked)[:DEPTH]
            if len(ranked) >= DEPTH or len(answer.passages) < k:
                del waiting[query]
        k *= 2
    return rankings


def scores(qrels: Qrels, rankings: Rankings) -> dict[str, Spread]:
    """Mean of each of MEASURES over the queries, with the 20th and 80th percentile of 1,000 bootstrap means.

    The percentiles say how far the mean moves with other queries of the same kind.
    """
    # Ranks become scores, so that ties are broken as the system broke them and not by document ids.
    run = {
        query: {document: float(-rank) for rank, document in enumerate(ranked)} for query, ranked in rankings.items()
    }
    names = {measure: name for name, measure in MEASURES.items()}
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for metric in ir_measures.iter_calc(list(names), qrels, run):
        values[names[metric.measure]].append(metric.value)
    drawn = np.random.default_rng(0).integers(len(qrels), size=(_DRAWS, len(qrels)))
    spreads = {}
    for name, of_queries in values.items():
        means = np.array(of_queries)[drawn].mean(axis=1)
        spreads[name] = Spread(float(np.mean(of_queries)), percentile(means, 20), percentile(means, 80))
    return spreads
