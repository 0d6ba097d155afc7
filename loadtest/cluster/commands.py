"""What commands that do something to a service under load have in common: flags, models, the file that they deploy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from engine.config import APP_IMPORT_PATH, EngineConfig
from engine.errors import SwitchyardError
from engine.models import resolve_model
from loadtest.verdicts import Verdict, print_verdicts


def command_parser(name: str, doc: str | None, *, rate: float) -> argparse.ArgumentParser:
    """A parser with `--rate` and the models' sources; `doc` of the module `loadtest.cluster.<name>` is its help."""
    lines = (doc or "").splitlines()
    defaults = EngineConfig()
    parser = argparse.ArgumentParser(
        prog=f"python -m loadtest.cluster.{name}",
        description=lines[0],
        epilog="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rate", type=float, default=rate, help="requests/s (%(default)s)")
    parser.add_argument("--generator", default=defaults.generator.model, help="model source (%(default)s)")
    parser.add_argument("--encoder", default=defaults.retriever.model, help="model source (%(default)s)")
    return parser


def fetch_models(options: argparse.Namespace) -> None:
    """Have both models here before anything is started. Raises: SwitchyardError."""
    resolve_model(options.generator, kind="generator", show_progress=True)
    resolve_model(options.encoder, kind="encoder", show_progress=True)


def print_judged(measure: Callable[[], Sequence[Verdict]]) -> int:
    """Measure and print what it comes to. Returns the exit code: 0 where all that was measured holds."""
    try:
        verdicts = measure()
    except (SwitchyardError, OSError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    return print_verdicts(verdicts, Console())


def serve_file(port: int, args: dict[str, Any], **application: Any) -> dict[str, Any]:
    """A serve_config.yaml with `args`, reached on loopback; `application` are more of its keys."""
    ours = {"name": "switchyard", "route_prefix": "/", "import_path": APP_IMPORT_PATH, "args": args}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [{**ours, **application}],
    }
