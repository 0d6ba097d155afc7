"""How good search is on a judged collection: nDCG@10, MRR@10 and recall, computed by ir_measures.

python -m loadtest.search_quality --corpus C.jsonl --queries Q.jsonl --qrels R.jsonl --mode dense
python -m loadtest.search_quality --squad squad_v1_dev.jsonl.gz --whole-documents --reference
python -m loadtest.search_quality --site docs.tar.gz Q.jsonl --mode dense lexical hybrid --fusion scores ranks

Documents go through a retriever: they are cut into chunks, and a document stands where the best of its chunks does.
With --whole-documents each is one vector instead, title and text cut off at the encoder's length, which is how
sentence-transformers is evaluated; --reference adds that library's own figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from rich.console import Console

from engine.config import RetrieverSettings, usable_cores
from engine.errors import SwitchyardError
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.values import SearchMode
from loadtest.bench_format import OURS, Report, Row
from loadtest.retrieval import sentence_transformers_peer as peer
from loadtest.retrieval.collection_files import Collection, read_collection, read_squad
from loadtest.retrieval.findings import Findings
from loadtest.retrieval.judged_sets import read_dialogues, read_faq, read_site
from loadtest.retrieval.quality import (
    Rankings,
    rank_by_sentence_transformers,
    rank_chunks,
    rank_whole_documents,
    scores,
)

WHOLE, CHUNKS = "whole documents", "chunks"
READERS: dict[str, Callable[..., Collection]] = {
    "squad": read_squad,
    "faq": read_faq,
    "dialogues": read_dialogues,
    "site": read_site,
}
_FUSIONS = get_args(RetrieverSettings.model_fields["fusion"].annotation)


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 with one line on standard error when something is wrong with the files or the model."""
    parser = _parser()
    options = parser.parse_args(argv)
    files = (options.corpus, options.queries, options.qrels)
    named = [name for name in READERS if getattr(options, name) is not None]
    if len(named) + any(files) != 1 or (not named and None in files):
        others = ", ".join(f"--{name}" for name in READERS)
        parser.error(f"name --corpus, --queries and --qrels, or one of {others} alone")
    if options.whole_documents and options.mode != ["dense"]:
        parser.error("--whole-documents is a set-up for --mode dense alone: the other modes search chunks")
    if (options.fusion or options.dense_weight) and "hybrid" not in options.mode:
        parser.error("--fusion and --dense-weight concern --mode hybrid, which is not asked for")
    if options.dense_weight and "scores" not in (options.fusion or ["scores"]):
        parser.error("--dense-weight concerns --fusion scores, which is not asked for")
    console = Console(stderr=True, highlight=False)
    try:
        report = measure(options, console)
        report.print_table(Console())
        if options.json is not None:
            report.write_json(options.json)
    except SwitchyardError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


def measure(options: argparse.Namespace, console: Console) -> Report:
    """The report that the options ask for."""
    collection, file = _collection(options)
    settings = RetrieverSettings(threads=usable_cores())
    model = resolve_model(options.model or settings.model, kind="encoder", show_progress=True)
    encoder = Encoder(model.path, threads=settings.threads, batch_tokens=settings.forward_tokens("cpu"))
    found = Findings()
    found.extra["collection"] = {
        "file": file.name,
        "documents": len(collection.documents),
        "queries": len(collection.queries),
    }
    found.extra["skipped"] = collection.skipped
    found.extra["model"] = model.name
    found.extra["spread"] = "p20 and p80 of 1,000 bootstrap means over the queries"
    if options.reference:
        missing = peer.absence()
        if missing is not None:
            raise SwitchyardError(missing)
        console.print(f"{peer.NAME} embeds {len(collection.documents):,} documents and the queries ...")
        with peer.sentence_transformers(model.path, settings.threads) as library:
            _add(found, WHOLE, peer.NAME, collection, rank_by_sentence_transformers(collection, library))
    if options.whole_documents:
        _add(found, WHOLE, OURS, collection, rank_whole_documents(collection, encoder, console))
    else:
        searches = _searches(options, settings)
        for name, rankings in rank_chunks(collection, encoder, searches, console).items():
            _add(found, f"{CHUNKS} {name}", OURS, collection, rankings)
    return Report("search_quality", found.rows, (), found.extra)


def _collection(options: argparse.Namespace) -> tuple[Collection, Path]:
    """What the options name, and the file that it is called by."""
    for name, reader in READERS.items():
        files = getattr(options, name)
        if files is not None:
            return reader(*files), files[0]
    return read_collection(options.corpus, options.queries, options.qrels), options.corpus


def _searches(options: argparse.Namespace, settings: RetrieverSettings) -> dict[str, RetrieverSettings]:
    """Settings of each search that is asked for, by name; hybrid ones once for each fusion, where any is named."""
    searches = {}
    for mode in options.mode:
        asked = settings.model_copy(update={"mode": mode})
        if mode != "hybrid" or not (options.fusion or options.dense_weight):
            searches[mode] = asked
            continue
        for fusion in options.fusion or ["scores"]:
            if fusion == "ranks":
                searches[f"{mode}, {fusion}"] = asked.model_copy(update={"fusion": fusion})
                continue
            for weight in options.dense_weight or [settings.dense_weight]:
                update = {"fusion": fusion, "dense_weight": weight}
                searches[f"{mode}, {fusion} {weight:g}"] = asked.model_copy(update=update)
    return searches


def _add(found: Findings, case: str, system: str, collection: Collection, rankings: Rankings) -> None:
    for metric, spread in scores(collection.qrels, rankings).items():
        found.rows.append(Row(case, system, metric, "share", *spread))


def share(text: str) -> float:
    """A share. Raises: ValueError or ArgumentTypeError for what is none."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 (words alone) to 1 (meaning alone)")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.search_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, help='JSONL of {"id", "text", "title"?}; .gz is read, too')
    parser.add_argument("--queries", type=Path, help='JSONL of {"id", "text"}')
    parser.add_argument(
        "--qrels", type=Path, help='JSONL of {"query_id", "doc_id", "relevance"}, or the format of TREC or BEIR'
    )
    parser.add_argument("--squad", type=Path, nargs=1, help="a SQuAD file: each question is to find its paragraph")
    parser.add_argument(
        "--faq", type=Path, nargs=2, metavar=("CORPUS", "QUERIES"), help="StackFAQ: each query is to find its answers"
    )
    parser.add_argument(
        "--dialogues", type=Path, nargs=1, help="MTRAG-UN: each last question is to find its passages, by the rules"
    )
    parser.add_argument(
        "--site", type=Path, nargs=2, metavar=("TAR", "QUESTIONS"), help="pages below docs/: each is to find its page"
    )
    parser.add_argument("--mode", nargs="+", choices=get_args(SearchMode), default=["dense"], help="default: dense")
    parser.add_argument(
        "--fusion", nargs="+", choices=_FUSIONS, help="hybrid searches with each of these; default: as configured"
    )
    parser.add_argument(
        "--dense-weight",
        nargs="+",
        type=share,
        help="hybrid searches by scores with each of these; default: as configured",
    )
    parser.add_argument("--model", help="an encoder, as retriever.model names it; default: the default encoder")
    parser.add_argument("--whole-documents", action="store_true", help="one vector for each document")
    parser.add_argument("--reference", action="store_true", help="sentence-transformers on whole documents besides")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
