"""`switchyard compare`: every arm of a server on your own questions, and which one to serve."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.cli.client import client_options, print_json
from engine.errors import TrainingDataError

if TYPE_CHECKING:
    from engine.evaluation.compare.job import CompareJob
    from engine.evaluation.compare.running import Compared

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("questions", type=_FILE)
@click.option("--arms", help="Only these: base,base+context,NAME,NAME+context,few-shot,auto [default: all there are].")
@click.option(
    "--out", type=_FOLDER, default=Path("comparison"), show_default=True, help="Folder for answers and report."
)
@click.option("--few-shot", type=_FILE, help="Training examples: the arm few-shot shows the most similar ones.")
@click.option("--shots", type=click.IntRange(1, 32), default=4, show_default=True, help="Examples that few-shot shows.")
@click.option("--updated-kb", type=_FILE, help="Changed documents with questions: which arms answer by them?")
@click.option("--collection", default="default", show_default=True, help="Collection to search.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at once.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Most tokens of an answer."
)
@click.option("--sample", type=click.IntRange(min=1), help="Ask so many of the questions, drawn by --seed.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--data",
    type=_FOLDER,
    envvar="SWITCHYARD_DATA",
    default=Path(".switchyard"),
    show_default=True,
    help="Data folder that adapters were tuned into: their tuning times.",
)
@click.option("--restart", is_flag=True, help="Ask everything anew, also what was answered before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def compare(
    questions: Path,
    arms: str | None,
    out: Path,
    few_shot: Path | None,
    shots: int,
    updated_kb: Path | None,
    collection: str,
    concurrency: int,
    max_tokens: int,
    sample: int | None,
    seed: int,
    data: Path,
    restart: bool,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Ask every arm of a running server all QUESTIONS, and say which one to serve.

    An arm is the base model or an adapter, with passages or without; few-shot shows training examples in the prompt,
    auto is the router's choice. Questions are JSON lines with "question" and "answers" or "label"; "documents" name
    those that hold the answer, "group" keeps questions together that depend on each other. Answers are kept as they
    come: the same command goes on where it was stopped. report.html, report.json and per_query.csv are written.

    \b
    Example:
      switchyard compare questions.jsonl --out comparison/
      switchyard compare questions.jsonl --arms base,base+context,support-bot --few-shot train.jsonl
      switchyard compare questions.jsonl --updated-kb changes.jsonl --sample 200
    """
    from engine.evaluation.compare.few_shot import FewShot
    from engine.evaluation.compare.job import CompareJob
    from engine.evaluation.compare.report import summary, write_report
    from engine.evaluation.compare.updating import read_updates
    from engine.evaluation.questions import read_questions
    from engine.report.plots import check_plotter
    from engine.tuning.data.examples import read_examples

    check_plotter()
    try:
        job = CompareJob(
            origin=questions.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            questions=read_questions([questions]),
            folder=out,
            data=data,
            arms=None if arms is None else tuple(name.strip() for name in arms.split(",") if name.strip()),
            collection=collection,
            max_tokens=max_tokens,
            concurrency=concurrency,
            sample=sample,
            seed=seed,
            few_shot=None if few_shot is None else FewShot(read_examples(few_shot), shots),
            few_shot_source=None if few_shot is None else few_shot.name,
            num_few_shot=shots,
            updates=() if updated_kb is None else read_updates(updated_kb),
            restart=restart,
        )
    except TrainingDataError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise
    try:
        compared = asyncio.run(_run(job, url, api_key))
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--arms") from None
    except KeyboardInterrupt:
        click.echo(f"stopped; answers so far are kept in {out}, and the same command goes on.", err=True)
        raise
    report = write_report(compared, out)
    if as_json:
        print_json(compared.comparison.to_json())
        return
    for line in summary(compared.comparison):
        click.echo(line)
    click.echo(f"\nreport in {report}")


async def _run(job: CompareJob, url: str, api_key: str | None) -> Compared:
    from rich.console import Console

    from engine.cli.compare_progress import CompareProgress
    from engine.evaluation.asking import Server
    from engine.evaluation.compare.running import run_comparison

    async with Server(url, api_key) as server:
        with CompareProgress(Console(stderr=True, highlight=False)) as progress:
            return await run_comparison(job, server, progress)
