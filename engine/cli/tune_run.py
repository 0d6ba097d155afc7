"""The two things that `switchyard tune` does with examples: judge them, and train on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from engine.cli.adapter_loading import load_adapter
from engine.cli.client import Client
from engine.cli.tune_models import find_counter, load_counter, load_encoder, torch_device
from engine.cli.tune_progress import TuneProgress, print_report
from engine.cli.tune_server import index_search
from engine.config import EngineConfig, usable_cores
from engine.errors import SwitchyardError
from engine.tuning.data.examples import Examples
from engine.tuning.guard.inspect import inspect


def check_data(
    data: Path,
    examples: Examples,
    evaluation: Examples | None,
    model: str | None,
    embed: bool,
    seed: int,
    json_path: Path | None,
) -> None:
    """Print the guard's report on `examples`, which are those of `data`, and write it where that is asked.

    Raises: SwitchyardError where the verdict is refuse.
    """
    report = inspect(
        examples,
        evaluation=evaluation,
        count_tokens=find_counter(model),
        max_tokens=EngineConfig().generator.max_model_len,
        embed=load_encoder().encode if embed else None,
        seed=seed,
    ).report
    print_report(report, Console(highlight=False))
    if json_path is not None:
        _write(json_path, report.to_json())
    if report.verdict == "refuse":
        worst = report.findings[0]
        raise SwitchyardError(f"{data}: not fit to be trained on. {worst.reason} {worst.fix}")


def train_adapter(
    client: Client, url: str, collection: str | None, loaded_as: str | None, json_path: Path | None, **job: Any
) -> None:
    """Run the job whose fields of TuneJob are `job`, and have the server load the adapter as `loaded_as`."""
    # torch takes seconds to import
    import torch
    from transformers.utils import logging

    from engine.tuning.run.job import TuneJob
    from engine.tuning.run.steps import run_tuning

    logging.disable_progress_bar()
    # The encoder took as many as the retriever of a server, which shares the machine, is given.
    torch.set_num_threads(usable_cores())
    made = TuneJob(
        **job,
        max_model_len=EngineConfig().generator.max_model_len,
        count_tokens=load_counter(job["model"].path),
        search=index_search(client, collection),
        device=torch_device(),
    )
    try:
        with TuneProgress(Console(highlight=False)) as progress:
            tuned = run_tuning(made, progress)
    except KeyboardInterrupt:
        raise SwitchyardError(
            f"stopped; what is done is in {made.folder}. The same command goes on with it, --restart begins anew."
        ) from None
    run = tuned.outcome.run
    click.echo(
        f"{made.name}: adapter of step {run.best.step:,} of {run.num_steps:,} in {tuned.adapter}; "
        f"{run.minutes:.1f} minutes, {run.tokens_per_s:,.0f} tokens/s, "
        f"peak memory {run.peak_memory_bytes / 2**30:.1f} GiB"
    )
    if json_path is not None:
        _write(json_path, tuned.outcome.to_json())
    click.echo(f"{made.name}: report in {tuned.report}")
    if loaded_as is not None:
        load_adapter(client, loaded_as, url)


def trainer(workers: int, address: str | None) -> dict[str, Any]:
    """The field of TuneJob that says who trains."""
    if workers == 1 and address is None:
        return {}
    from engine.serving.training import RayTrainer

    return {"train": RayTrainer(workers, threads=usable_cores(), address=address).train}


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SwitchyardError(f"{file}: cannot be written ({error.strerror}). Name a writable file.") from None
