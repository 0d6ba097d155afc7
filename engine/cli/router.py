"""`switchyard router`: a route learned from measured outcomes, what it is worth, and what it holds."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from engine.cli.client import print_json
from engine.cli.collect import collect_command
from engine.cli.evaluation_files import outcomes_of
from engine.cli.router_evaluate import evaluate
from engine.cli.router_feedback import feedback
from engine.errors import SwitchyardError
from engine.retrieval.store.address import VARIABLE
from engine.routing.artefact import DEFAULT_EPSILON, Artefact, Objective, ObjectiveName, read_artefact, write_artefact
from engine.routing.decide import failed_test

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILES = click.argument("outcomes", nargs=-1, required=True, type=_FILE)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def router() -> None:
    """Learn which arm should answer a question, from outcomes of every arm on your own questions.

    An arm is the base model or an adapter, with or without passages: base, base+context, NAME, NAME+context. Outcomes
    are JSON lines; docs/routing.md shows them.

    \b
    Example:
      switchyard router collect questions.jsonl --out outcomes.jsonl
      switchyard router train outcomes.jsonl --out router/
      switchyard router evaluate router/ other_outcomes.jsonl
      switchyard router show router/
      switchyard router publish router/
    """


router.add_command(collect_command)
router.add_command(evaluate)
router.add_command(feedback)


@router.command()
@_FILES
@click.option("--out", type=_FOLDER, required=True, help="Folder for the router and its report.")
@click.option(
    "--objective",
    type=click.Choice(["quality", "latency", "budget"]),
    default="quality",
    show_default=True,
    help="The best answers; the least latency at about the quality of the best single arm; or the best answers with "
    "passages for a share of the questions.",
)
@click.option(
    "--max-p95-ms", type=click.FloatRange(min=0, min_open=True), help="With quality: most latency, 95th percentile."
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1),
    help=f"With latency: quality that may be lost [default: {DEFAULT_EPSILON}].",
)
@click.option("--budget", type=click.FloatRange(0, 1), help="With budget: share of questions that may get passages.")
@click.option("--arms", help="Choose among these only: base,base+context.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the folds.")
@_JSON
def train(
    outcomes: tuple[Path, ...],
    out: Path,
    objective: ObjectiveName,
    max_p95_ms: float | None,
    epsilon: float | None,
    budget: float | None,
    arms: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Fit a router to the OUTCOMES of every arm, and judge it on questions that it was not fitted on.

    It is kept only if it beats the best single arm and simple baselines beyond chance; otherwise the folder holds the
    best single arm, and says why. router.json, router.safetensors, report.html and report.json are written.

    \b
    Example:
      switchyard router train outcomes.jsonl --out router/
      switchyard router train outcomes.jsonl --out router/ --objective budget --budget 0.3
    """
    made = _objective(objective, max_p95_ms=max_p95_ms, epsilon=epsilon, budget=budget)
    from engine.evaluation.report import summary, write_report
    from engine.evaluation.training import train_router
    from engine.report.plots import check_plotter

    check_plotter()
    chosen = None if arms is None else [name.strip() for name in arms.split(",") if name.strip()]
    trained = train_router(outcomes_of(outcomes), made, created=_now(), arms=chosen, seed=seed)
    written = write_artefact(trained.artefact, out)
    report = write_report(trained.evaluation, out)
    if as_json:
        print_json({"router": written.name, "folder": str(out), "evaluation": trained.evaluation.to_json()})
        return
    for line in summary(trained.evaluation):
        click.echo(line)
    click.echo(f"\n{written.name} in {out}; report in {report}")


@router.command()
@click.argument("folder", type=_FOLDER, required=False)
@click.option("--withdraw", is_flag=True, help="Take the router out of the store, so that there is none.")
@click.option("--store", envvar=VARIABLE, required=True, help="URL of the PostgreSQL database of the server.")
@_JSON
def publish(folder: Path | None, withdraw: bool, store: str, as_json: bool) -> None:
    """Put the router in FOLDER into the store, from where every gateway takes it up within seconds.

    For servers whose store is PostgreSQL: their gateways may run on machines that share no disk. A server with a data
    folder of its own reads the router that lies there.

    \b
    Example:
      SWITCHYARD_STORE=postgresql+psycopg://switchyard@db.internal/switchyard switchyard router publish router/
    """
    if (folder is None) != withdraw:
        raise click.UsageError("name the FOLDER of a router, or say --withdraw.")
    from engine.evaluation.shared_router import SharedRouter
    from engine.retrieval.store.shared_files import SharedFiles

    with contextlib.closing(SharedFiles(store)) as files:
        shared = SharedRouter(files, Path())
        name = shared.withdraw() if folder is None else shared.publish(folder).name
        where = files.where
    if as_json:
        print_json({"router": name, "store": where, "withdrawn": withdraw})
        return
    if name is None:
        click.echo(f"{where} has no router")
        return
    click.echo(f"{name} {'withdrawn from' if withdraw else 'published in'} {where}")


@router.command()
@click.argument("folder", type=_FOLDER)
@_JSON
def show(folder: Path, as_json: bool) -> None:
    """Print what the router in FOLDER is, what it rests on, and whether its files pass its own test.

    \b
    Example:
      switchyard router show router/
    """
    artefact = read_artefact(folder)
    problem = None if artefact.learned is None else failed_test(artefact.learned)
    if as_json:
        print_json(_content(artefact, problem))
    else:
        for line in _lines(artefact):
            click.echo(line)
    if problem is not None:
        raise SwitchyardError(f"{folder}: {problem}. Write it anew: switchyard router train.")


def _content(artefact: Artefact, problem: str | None) -> dict[str, Any]:
    return {
        "router": artefact.name,
        "created": artefact.created,
        "is_learned": artefact.learned is not None,
        "headline": artefact.headline,
        "reasons": list(artefact.reasons),
        "arms": list(artefact.arms),
        "best_arm": artefact.best_arm,
        "objective": asdict(artefact.objective),
        "keys": artefact.keys.to_json(),
        "signals": list(artefact.signals),
        "num_questions": artefact.num_questions,
        "frontier": [asdict(point) for point in artefact.frontier],
        "figures": artefact.figures,
        "problem": problem,
    }


def _lines(artefact: Artefact) -> list[str]:
    keys, day = artefact.keys, artefact.created[:16].replace("T", " ")
    lines = [
        f"{artefact.name}, trained {day} UTC on {artefact.num_questions:,} questions",
        artefact.headline,
        *(f"  {reason}" for reason in artefact.reasons),
        f"arms          {', '.join(artefact.arms)}",
        f"falls back to {artefact.best_arm}",
        f"objective     {artefact.objective.name}",
        f"model         {keys.model}",
        f"index         {keys.index or 'none'}",
        f"encoder       {keys.encoder or 'none'}",
    ]
    lines += [f"adapter       {name} {digest}" for name, digest in sorted(keys.adapters.items())]
    if artefact.signals:
        lines.append(f"signals       {', '.join(artefact.signals)}")
    if artefact.frontier:
        lines.append(f"{'':<28} {'passages':>9} {'quality':>8} {'mean ms':>9} {'p95 ms':>9}")
        lines += [
            f"{each.name:<28} {each.context_rate:>9.0%} {each.quality:>8.3f} {each.mean_ms:>9,.0f} {each.p95_ms:>9,.0f}"
            for each in artefact.frontier
        ]
    if artefact.learned is not None and failed_test(artefact.learned) is None:
        lines.append(f"passes its own test on {len(artefact.learned.self_test.chosen)} stored questions")
    return lines


def _objective(
    name: ObjectiveName, *, max_p95_ms: float | None, epsilon: float | None, budget: float | None
) -> Objective:
    """Raises: UsageError for an option of another objective."""
    for option, value, wanted in (
        ("--max-p95-ms", max_p95_ms, "quality"),
        ("--epsilon", epsilon, "latency"),
        ("--budget", budget, "budget"),
    ):
        if value is not None and name != wanted:
            raise click.UsageError(f"{option} is for --objective {wanted}, not {name}.")
    if name == "budget" and budget is None:
        raise click.UsageError("--objective budget needs the share of questions that may get passages: --budget 0.3.")
    return Objective(name, max_p95_ms, DEFAULT_EPSILON if epsilon is None else epsilon, budget)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
