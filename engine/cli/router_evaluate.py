"""`switchyard router evaluate`: what a router is worth on other questions, and where they are typed otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engine.cli.client import client_options, print_json
from engine.cli.evaluation_files import outcomes_of, questions_of
from engine.routing.artefact import Artefact, read_artefact

if TYPE_CHECKING:
    from engine.evaluation.evaluate import Unseen
    from engine.evaluation.figures import Robustness
    from engine.evaluation.questions import Question

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
# Options that say how changed questions are asked.
_OF_ROBUSTNESS = {"collection": "--collection", "seed": "--seed", "url": "--url", "api_key": "--api-key"}


@click.command()
@click.argument("folder", type=_FOLDER)
@click.argument("outcomes", nargs=-1, required=True, type=_FILE)
@click.option("--out", type=_FOLDER, help="Write report.html and report.json into this folder.")
@click.option(
    "--robustness",
    "questions",
    multiple=True,
    type=_FILE,
    help="File of the questions that the outcomes are of: decide again for each with typos, in lower case and in its "
    "paraphrases, by signals that the server computes. May be given again.",
)
@click.option("--collection", help="With --robustness: collection to search; default: the server's.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="With --robustness: draws the typos."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
@click.pass_context
def evaluate(
    context: click.Context,
    folder: Path,
    outcomes: tuple[Path, ...],
    out: Path | None,
    questions: tuple[Path, ...],
    collection: str | None,
    seed: int,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Judge the router in FOLDER on those questions of OUTCOMES that it was not trained on.

    Only --robustness needs a server; it must have what the outcomes were measured with, and generates nothing.

    \b
    Example:
      switchyard router evaluate router/ other_outcomes.jsonl --out evaluation/
      switchyard router evaluate router/ other_outcomes.jsonl --robustness other_questions.jsonl
    """
    _check_options(context, has_questions=bool(questions))
    from engine.evaluation.evaluate import evaluate_unseen, unseen_questions
    from engine.evaluation.overhead import measure_overhead
    from engine.evaluation.report import summary, write_report
    from engine.evaluation.robustness import check_texts
    from engine.report.plots import check_plotter

    if out is not None:
        check_plotter()
    artefact, measured, asked = read_artefact(folder), outcomes_of(outcomes), questions_of(questions)
    check_texts(measured, asked, ", ".join(map(str, questions)))
    unseen = unseen_questions(artefact, measured)
    evaluation = evaluate_unseen(artefact, unseen, created=datetime.now(UTC).isoformat(timespec="seconds"))
    if artefact.learned is not None:
        evaluation = replace(evaluation, overhead=measure_overhead(artefact, unseen.table))
    if asked:
        options = {"collection": collection, "seed": seed}
        evaluation = replace(evaluation, robustness=_robustness(url, api_key, artefact, unseen, asked, options))
    report = None if out is None else write_report(evaluation, out)
    if as_json:
        print_json({"router": artefact.name, "evaluation": evaluation.to_json()})
        return
    for line in summary(evaluation):
        click.echo(line)
    if report is not None:
        click.echo(f"\nreport in {report}")


def _check_options(context: click.Context, *, has_questions: bool) -> None:
    """Raises: UsageError for an option that would say nothing."""
    for name, option in _OF_ROBUSTNESS.items():
        if not has_questions and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is for --robustness: name the questions to change, or leave it out.")


def _robustness(
    url: str,
    api_key: str | None,
    artefact: Artefact,
    unseen: Unseen,
    questions: Sequence[Question],
    options: dict[str, Any],
) -> Robustness:
    from engine.evaluation.asking import Server
    from engine.evaluation.robustness import measure_robustness

    async def asked(listener: Callable[[int, int], None]) -> Robustness:
        async with Server(url, api_key) as server:
            return await measure_robustness(server, artefact, unseen, questions, listener=listener, **options)

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("signals"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("signals", total=None)
        return asyncio.run(asked(lambda num, total: progress.update(task, completed=num, total=total)))
