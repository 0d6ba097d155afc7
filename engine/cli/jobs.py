"""`switchyard jobs`: how far the server is with writes that it applies in the background."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from engine.cli.client import Client, ServerError, client_options, print_json
from engine.errors import SwitchyardError

_POLL_S = 0.5


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--follow", is_flag=True, help="Show its progress until it ends.")
@click.option("--cancel", is_flag=True, help="Cancel what still waits; what is applied stays.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def jobs(job_id: str | None, follow: bool, cancel: bool, as_json: bool, url: str, api_key: str | None) -> None:
    """List the newest jobs, or show, follow or cancel the one named ID.

    A job counts the writes of `switchyard ingest --background` (over HTTP: wait=durable), or the documents of a
    generation that is built. Exit code 1 when a job that was named has failing files, or was cancelled before its end.

    \b
    Example:
      switchyard jobs
      switchyard jobs 4f1d0c5e9a7b4d6f8e2a1b3c5d7e9f01 --follow
    """
    if job_id is None and (follow or cancel):
        raise click.UsageError("--follow and --cancel need the ID of a job; `switchyard jobs` lists them.")
    if follow and cancel:
        raise click.UsageError("--follow and --cancel exclude each other.")
    client = Client(url, api_key)
    if job_id is None:
        listed = client.call("GET", "/v1/jobs")
        print_json(listed) if as_json else _print_list(listed["jobs"])
        return
    path = f"/v1/jobs/{job_id}"
    job = client.call("DELETE" if cancel else "GET", path)
    if follow:
        job = follow_job(client, path, job)
    print_json(job) if as_json else _print_job(job)
    if job["failed"]:
        raise SwitchyardError(f"{job['failed']} documents failed; the others are stored. Mend them and ingest again.")
    if job["state"] == "failed" or (job["state"] == "cancelled" and not cancel):
        what = "are stored" if job["kind"] == "ingest" else "have chunks of the generation"
        raise SwitchyardError(f"job {job['id']} is {job['state']}: {job['done']} of {job['total']} documents {what}.")


def follow_job(client: Client, path: str, job: dict[str, Any]) -> dict[str, Any]:
    """Show a job's progress until it ends; the job then. `path` is the job's."""
    columns = (
        TextColumn("{task.fields[state]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    told = None
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("job", total=job["total"], state="", failed=0, left="")
        while True:
            progress.update(
                task,
                total=job["total"],
                completed=job["done"] + job["failed"],
                state=job["state"],
                failed=job["failed"],
                left="" if job["eta_s"] is None else f"about {_duration(job['eta_s'])} left",
            )
            if job["finished_at"] is not None:
                return job
            if job["waiting_for"] not in (None, told):
                told = job["waiting_for"]
                console.print(Text(f"waiting: {told}"))
            time.sleep(_POLL_S)
            try:
                job = client.call("GET", path)
            except ServerError as error:
                # A server that restarts goes on with the job.
                if error.status != 503:
                    raise


def _print_list(listed: list[dict[str, Any]]) -> None:
    if not listed:
        click.echo("no jobs; `switchyard ingest PATH --background` makes one")
        return
    table = Table(box=None, header_style="bold")
    for name in ("id", "collection", "state", "done", "failed", "total", "created"):
        table.add_column(name, justify="right" if name in ("done", "failed", "total") else "left", no_wrap=True)
    for job in listed:
        created = datetime.fromtimestamp(job["created_at"]).strftime("%Y-%m-%d %H:%M:%S")
        numbers = (str(job[name]) for name in ("done", "failed", "total"))
        table.add_row(job["id"], Text(job["collection"]), job["state"], *numbers, created)
    _console().print(table)


def _print_job(job: dict[str, Any]) -> None:
    click.echo(
        f"job {job['id']}: {job['state']}, {job['done']} of {job['total']} done, {job['failed']} failed "
        f"({job['progress']:.0%}); collection {job['collection']}"
        + (f", index version {job['version']}" if job["version"] else "")
        + (f"; about {_duration(job['eta_s'])} left" if job["eta_s"] is not None else "")
    )
    if job["waiting_for"]:
        click.echo(f"waiting: {job['waiting_for']}")
    if job["errors"]:
        table = Table(box=None, header_style="bold")
        table.add_column("document", no_wrap=True)
        table.add_column("error")
        for error in job["errors"]:
            table.add_row(Text(error["item"]), Text(error["error"]))
        _console().print(table)
        if job["failed"] > len(job["errors"]):
            click.echo(f"and {job['failed'] - len(job['errors'])} more")


def _console() -> Console:
    # What is piped elsewhere keeps its lines whole.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
