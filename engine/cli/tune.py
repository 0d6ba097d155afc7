"""`switchyard tune`: examples, judged before anything is trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.config import EngineConfig
from engine.errors import InvalidAdapter, ModelSourceError, SwitchyardError, TrainingDataError
from engine.generation.adapters.registry import check_name
from engine.models import resolve_model
from engine.tuning.data.examples import Examples, read_examples
from engine.tuning.guard.counts import CountTokens
from engine.tuning.guard.diversity import Embed
from engine.tuning.guard.inspect import inspect
from engine.tuning.guard.report import GuardReport
from engine.tuning.guard.show import report_lines

_STYLES = {"ok": "bold green", "risky": "bold yellow", "refuse": "bold red"}
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("data", type=_FILE)
@click.option("--name", required=True, help="Name of the adapter, by which requests will ask for it.")
@click.option("--check", is_flag=True, help="Read, check and judge the data only.")
@click.option("--eval", "evaluation", type=_FILE, help="Rows to judge the adapter by; none of DATA may be among them.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out instead of stopping.")
@click.option("--model", help="Model whose tokens are counted; default: the default generator.")
@click.option("--embed", is_flag=True, help="Compare the inputs by meaning too, with the default encoder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws samples and the split.")
@click.option("--json", "json_path", type=_FILE, help="Write the report here.")
def tune(
    data: Path,
    name: str,
    check: bool,
    evaluation: Path | None,
    skip_bad: bool,
    model: str | None,
    embed: bool,
    seed: int,
    json_path: Path | None,
) -> None:
    """Judge the examples in DATA (JSONL or CSV, plain or .gz) before training on them: ok, risky or refuse.

    \b
    A row is one of
      {"text", "label"}                                      classify
      {"question", "answers", "context" and/or "document"}   answer questions
      {"prompt", "completion"} or {"messages"}               chat

    \b
    Example:
      switchyard tune examples.jsonl --name support-bot --check --eval held_out.jsonl
    """
    if not check:
        raise click.UsageError("training is not implemented in this version; add --check to judge the data.")
    try:
        check_name(name)
    except InvalidAdapter as error:
        raise click.BadParameter(str(error), param_hint="--name") from None
    examples = _read(data, skip_bad=skip_bad)
    judged_by = None
    if evaluation is not None:
        judged_by = _read(evaluation, skip_bad=skip_bad, labels=examples.labels if examples.labels else None)
    report = inspect(
        examples,
        evaluation=judged_by,
        count_tokens=_tokenizer(model),
        max_tokens=EngineConfig().generator.max_model_len,
        embed=_encoder() if embed else None,
        seed=seed,
    ).report
    _print(report)
    if json_path is not None:
        _write(json_path, report)
    if report.verdict == "refuse":
        worst = report.findings[0]
        raise SwitchyardError(f"{data}: not fit to be trained on. {worst.reason} {worst.fix}")


def _read(file: Path, *, skip_bad: bool, labels: tuple[str, ...] | None = None) -> Examples:
    try:
        return read_examples(file, skip_bad=skip_bad, labels=labels)
    except TrainingDataError as error:
        for problem in error.problems:
            click.echo(f"{file}: {problem}", err=True)
        raise


def _tokenizer(model: str | None) -> CountTokens | None:
    """The model's; None, said on standard error, where the default model cannot be had: the rest needs none."""
    from tokenizers import Tokenizer

    try:
        path = resolve_model(model or EngineConfig().generator.model, kind="generator", show_progress=True).path
    except ModelSourceError as error:
        if model is not None:
            raise
        click.echo(f"tokens are not counted: {error}", err=True)
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    # The library raises nothing more specific for a file that it cannot read.
    except Exception as error:
        why = " ".join(str(error).split())
        raise ModelSourceError(
            f"{path}: has no tokenizer.json that can be read ({why}). Name another --model."
        ) from None
    return lambda texts: [
        len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _encoder() -> Embed:
    from engine.retrieval.encoding.encoder import Encoder  # torch takes seconds to import

    settings = EngineConfig().retriever
    path = resolve_model(settings.model, kind="encoder", show_progress=True).path
    encoder = Encoder(path, threads=settings.threads, batch_tokens=settings.forward_tokens("cpu"))
    return encoder.encode


def _print(report: GuardReport) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in report_lines(report):
        table.add_row(Text(name, _STYLES.get(name, "")), Text(text, _STYLES.get(text, "") if name == "verdict" else ""))
    Console(highlight=False).print(table)


def _write(file: Path, report: GuardReport) -> None:
    content: dict[str, Any] = report.to_json()
    try:
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SwitchyardError(f"{file}: cannot be written ({error.strerror}). Name a writable file.") from None
