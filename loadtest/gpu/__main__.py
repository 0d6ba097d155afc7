"""The engine on a GPU, random weights in well-known shapes: first that it is right, then how fast against the bounds.

python -m loadtest.gpu --out FOLDER                        every shape and part
python -m loadtest.gpu --out FOLDER --quick --shapes Mistral-7B --parts parity search speed --budget-s 400
python -m loadtest.gpu --dry-run                           tiny shapes on the CPU: does the script work?

    part      what                                                                                    seconds, --quick
    parity    operations, greedy tokens, recorded steps, adapters, drafts and grammars    50, and 20 for each 7B shape
    search    exact search of 1M x 384 in half precision                                                            15
    speed     steps against the bandwidth and GEMM rates; free, rag and lora8 by the
              engine in this process against generate and generate_batch                          140 for each 7B shape
    encoder   texts a second against sentence-transformers                                                          15

Seconds are estimates for an H100. Parts come in this order, and in each what the table at the end asks for comes first;
what is wrong in `parity` ends the run before anything is timed. Each part runs in a process of its own and writes
FOLDER/gpu_PART.json after every step, so what is found stays found. Needs torch, transformers, peft,
sentence-transformers and this project's light dependencies; neither Ray nor FAISS.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from loadtest.generation.random_checkpoint import SHAPES
from loadtest.gpu.bars import SHAPE, bar_lines
from loadtest.gpu.record import Budget

PARTS = ("parity", "search", "speed", "encoder")
_KILL_AFTER_S = 5.0
# Below this a part would not even load its libraries.
_LEAST_S = 15.0


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 when something differs from its reference or fails."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all, in this order")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: all but tiny")
    parser.add_argument("--quick", action="store_true", help="few cases and rounds")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="what does not fit is skipped, and said")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints (16 GB each); default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder for the result files")
    options = parser.parse_args(argv)
    console = Console(highlight=False, width=160)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run runs a tiny shape on the CPU")
    device = "cpu" if options.dry_run else "cuda"
    shapes = options.shapes or (["tiny"] if options.dry_run else [name for name in SHAPES if name != "tiny"])
    plan = "dry" if options.dry_run else "quick" if options.quick else "full"
    runs = [("parity", list(shapes)), ("search", []), *(("speed", [shape]) for shape in shapes), ("encoder", [])]
    budget = Budget(options.budget_s)
    is_right = True
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for part, names in runs:
            if part not in options.parts:
                continue
            path = out / f"gpu_{'_'.join([part, *names] if part == 'speed' else [part])}.json"
            written.append(path)
            if budget.left_s() < _LEAST_S:
                console.print(f"{path.stem}: skipped, {budget.left_s():.0f} s left", markup=False)
                continue
            with tempfile.TemporaryDirectory(dir=options.work) as work:
                command = [part, str(path), f"{budget.left_s():.0f}", device, plan, work, *names]
                code = _run(command, budget.left_s() + _KILL_AFTER_S)
            if code != 0:
                is_right = False
                console.print(f"{path.stem}: ended with {code}", markup=False)
            if code != 0 and part == "parity":
                console.print("parity is red, so nothing is timed; --parts takes the others alone", markup=False)
                break
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in written if path.is_file()]
        for content in contents:
            _print_short(content, console)
        if "parity" not in options.parts:
            console.print("parity: not checked by this call")
        for line in bar_lines(contents, shape=shapes[0] if options.dry_run else SHAPE, is_dry=options.dry_run):
            console.print(line, markup=False, soft_wrap=True)
    return 0 if is_right else 1


def _run(arguments: list[str], limit_s: float) -> int:
    """The part's exit code; it and what it started end with the limit."""
    command = [sys.executable, "-m", "loadtest.gpu.part", *arguments]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True) as process:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


def _print_short(content: dict[str, Any], console: Console) -> None:
    """What fits the end of a log: one line for each comparison, figure and ratio."""

    def say(words: str) -> None:
        console.print(words, markup=False, soft_wrap=True)

    say(f"== {content['bench']}")
    for kind in ("parity", "failed", "skipped", "missing"):
        for name, words in content.get(kind, {}).items():
            say(f"{kind} {name}: {words}")
    for name, found in content.get("steps", {}).items():
        share = 100 * found["kernel_ms"] / found["step_ms"]
        reached = 100 * found["bound_ms"] / found["step_ms"]
        say(
            f"step {name}: {found['step_ms']:.2f} ms, {reached:.0f} % of the bound, kernels {share:.0f} % in "
            f"{found['num_kernels']} launches"
        )
    for row in content["rows"]:
        say(f"{row['case']} | {row['system']} | {row['value']:.4g} {row['unit']}")
    for ratio in content["ratios"]:
        spread = f"{ratio['value']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})"
        say(f"{ratio['case']} | over {ratio['ours_over']} | {spread}")


if __name__ == "__main__":
    sys.exit(main())
