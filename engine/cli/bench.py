"""`switchyard bench`: measurements, which live in the checkout's loadtest/ folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from engine.errors import SwitchyardError

BENCHES = ("generation", "retrieval", "serving", "kernels", "tuning", "router")


@click.command()
@click.argument("name", type=click.Choice(BENCHES))
@click.option("--quick", is_flag=True, help="End within 3 minutes on 2 cores.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def bench(name: str, quick: bool, json_path: Path | None) -> None:
    """Measure NAME, with the systems in turn within one run, and print the figures.

    \b
    Example:
      switchyard bench serving --quick --json serving.json
    """
    # Load code is not installed with the package, it is found beside it in a checkout.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        module: Any = importlib.import_module(f"loadtest.bench_{name}")
    except ModuleNotFoundError as error:
        raise SwitchyardError(
            f"benches need a checkout and its bench extra ({error}). In the repository: pip install -e '.[cpu,bench]'."
        ) from None
    module.run(quick=quick, json_path=json_path)
