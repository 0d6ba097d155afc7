"""The `switchyard` command: its groups, and how every failure is shown."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from engine import __version__
from engine.errors import SwitchyardError

# Imported when called, so that `switchyard --help` and client commands do not wait for torch or Ray.
COMMANDS = {
    "serve": "engine.cli.serve:serve",
    "up": "engine.cli.serve:up",
    "stop": "engine.cli.serve:stop",
    "ingest": "engine.cli.ingest:ingest",
    "jobs": "engine.cli.jobs:jobs",
    "generations": "engine.cli.generations:generations",
    "ask": "engine.cli.ask:ask",
    "search": "engine.cli.search:search",
    "judge": "engine.cli.judge:judge",
    "tune": "engine.cli.tune:tune",
    "compare": "engine.cli.compare:compare",
    "router": "engine.cli.router:router",
    "adapters": "engine.cli.adapters:adapters",
    "snapshot": "engine.cli.snapshot:snapshot",
    "models": "engine.cli.models:models",
    "bench": "engine.cli.bench:bench",
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use, and whose errors are one line with the fix."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SwitchyardError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"switchyard: {error}", err=True)
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            why = " ".join(str(error).split()) or type(error).__name__
            click.echo(
                f"switchyard: unexpected error: {why}. Run `switchyard --debug ...` for the traceback.",
                err=True,
            )
            ctx.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="switchyard")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Answer each question on the right track: fine-tuned generator, retrieved passages, or both.

    \b
    Example:
      switchyard serve &
      switchyard ingest docs/
      switchyard ask "How do I add documents?"
    """


if __name__ == "__main__":
    sys.exit(main())
