"""`switchyard router collect`: every arm asked every question, and what came of it as a file of outcomes."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import click
from rich.console import Console

from engine.cli.client import client_options, print_json
from engine.cli.collect_progress import CollectProgress, arms_table
from engine.cli.evaluation_files import questions_of
from engine.errors import SwitchyardError
from engine.evaluation.collecting import CollectOptions, collect
from engine.evaluation.outcomes import ArmOutcome, Outcomes, write_outcomes
from engine.evaluation.questions import Question
from engine.evaluation.table import DISCORDANT

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("collect")
@click.argument("questions", nargs=-1, required=True, type=_FILE)
@click.option("--out", type=_FILE, required=True, help="File for the outcomes; compressed where it ends in .gz.")
@click.option("--arms", help="Ask these only: base,base+context [default: all that can answer].")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Questions at once; latency is measured under this load.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Most tokens of an answer."
)
@click.option("--collection", help="Collection to search; default: the server's.")
@click.option("--embeddings", is_flag=True, help="Keep each question's embedding, for the nearest-questions baseline.")
@click.option("--no-text", is_flag=True, help="Write ids, grades, signals and latencies only, no question's text.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the order of asking.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever a stopped or finished call left.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def collect_command(
    questions: tuple[Path, ...],
    out: Path,
    arms: str | None,
    concurrency: int,
    max_tokens: int,
    collection: str | None,
    embeddings: bool,
    no_text: bool,
    seed: int,
    restart: bool,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Ask every arm the QUESTIONS, grade the answers, and write the outcomes that `router train` learns from.

    QUESTIONS are JSON lines {"question", "answers": [..] or "label"}; id, source, group and documents may be added.
    Every answer is kept at once in OUT.work: a call that was stopped goes on where it is repeated.

    \b
    Example:
      switchyard router collect questions.jsonl --out outcomes.jsonl
      switchyard router collect questions.jsonl --out outcomes.jsonl --arms base,base+context,support-bot
    """
    if no_text and embeddings:
        raise click.UsageError("--embeddings tells much of the text that --no-text leaves out; leave out one of them.")
    work = out.with_name(f"{out.name}.work")
    if not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {out.parent}. Make it, or name another file.")
    if out.exists() and not work.exists() and not restart:
        raise click.UsageError(f"--out {out} exists. Name another file, or replace it with --restart.")
    asked = questions_of(questions)
    options = CollectOptions(
        arms=None if arms is None else tuple(name.strip() for name in arms.split(",") if name.strip()),
        concurrency=concurrency,
        max_tokens=max_tokens,
        collection=collection,
        with_embeddings=embeddings,
        seed=seed,
    )
    console = Console(stderr=True, highlight=False)
    try:
        with CollectProgress(console) as progress:
            outcomes = asyncio.run(_collect(url, api_key, asked, options, work, restart, progress))
    except KeyboardInterrupt:
        raise SwitchyardError(f"stopped. What was answered is in {work}; the same command goes on.") from None
    write_outcomes(outcomes, out, with_texts=not no_text)
    failed = [found for each in outcomes.questions for found in each.arms.values() if found.error is not None]
    if not failed:
        work.unlink()
    if as_json:
        print_json(_summary(outcomes, out, failed))
    else:
        Console(highlight=False).print(arms_table(outcomes))
        click.echo(
            f"{len(outcomes.questions):,} questions, {_num_discordant(outcomes):,} of them with arms that differ"
        )
        click.echo(f"{out}; learn the route from it: switchyard router train {out} --out router/")
    if failed:
        click.echo(f"{len(failed):,} answers failed ({failed[0].error}); the same command asks them again", err=True)


async def _collect(
    url: str,
    api_key: str | None,
    questions: tuple[Question, ...],
    options: CollectOptions,
    work: Path,
    restart: bool,
    progress: CollectProgress,
) -> Outcomes:
    from engine.evaluation.asking import Server

    async with Server(url, api_key) as server:
        return await collect(server, questions, options, work, restart=restart, listener=progress)


def _num_discordant(outcomes: Outcomes) -> int:
    """Questions on which it matters which arm answers."""
    found = [[arm.quality for arm in each.arms.values() if arm.quality is not None] for each in outcomes.questions]
    return sum(max(known) - min(known) >= DISCORDANT for known in found if known)


def _summary(outcomes: Outcomes, out: Path, failed: list[ArmOutcome]) -> dict[str, object]:
    arms = {}
    for name in outcomes.arms:
        known = [each.arms[name].quality for each in outcomes.questions]
        qualities = [quality for quality in known if quality is not None]
        arms[name] = {"questions": len(qualities), "quality": statistics.fmean(qualities) if qualities else None}
    return {
        "file": str(out),
        "keys": outcomes.keys.to_json(),
        "questions": len(outcomes.questions),
        "discordant": _num_discordant(outcomes),
        "failed": len(failed),
        "arms": arms,
    }
