"""The generation engine on a GPU, over random weights in well-known shapes: first that it is right, then how fast.

python -m loadtest.gpu --json docs/benchmarks/gpu.json       every shape, bfloat16
python -m loadtest.gpu --shapes Qwen3-0.6B --quick           one shape, few requests
python -m loadtest.gpu --dry-run                             a tiny shape on the CPU: does the script work?

Needs torch, transformers and this project's light dependencies; neither Ray nor FAISS.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from loadtest.bench_format import Report
from loadtest.bench_generation import race
from loadtest.generation.plan import GENERATE, Findings, Plan
from loadtest.generation.random_checkpoint import SHAPES, write_checkpoint
from loadtest.generation.systems import OurEngine
from loadtest.generation.workloads import Job, free_jobs, read_trace

FULL = Plan({1: 2, 8: 16, 32: 64, 128: 256}, {1: 4, 8: 24, 32: 64}, 3, 3, (), (), 0)
QUICK = Plan({1: 1, 32: 32}, {8: 16}, 2, 2, (), (), 0)
DRY = Plan({1: 1, 2: 2}, {2: 2}, 1, 1, (), (), 0)
PARITY_LAYERS = 2
PARITY_TOKENS = 24
TIE = 1e-4  # a difference is excused where the reference's two best logits lie this close


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 when a shape gives other tokens than transformers."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: all but tiny")
    parser.add_argument("--quick", action="store_true", help="few requests and rounds")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape on the CPU")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints (16 GB each); default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run runs a tiny shape on the CPU")
    device = "cpu" if options.dry_run else "cuda"
    shapes = options.shapes or (["tiny"] if options.dry_run else [name for name in SHAPES if name != "tiny"])
    plan = DRY if options.dry_run else QUICK if options.quick else FULL
    found = Findings()
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            is_right = _parity(Path(folder), shape, device, found)
        console.print(f"{shape}: {found.extra['parity'][shape]}")
        if not is_right:
            return 1
    for shape in shapes:
        console.print(f"{shape}: writing random weights ...")
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            model = write_checkpoint(Path(folder), shape, device=device)
            asyncio.run(
                race(
                    *(model, plan, read_trace(), found, console),
                    dtype="bfloat16",
                    peers=(GENERATE,),
                    peer_dtypes=("bfloat16",),
                    with_llama=False,
                    device=device,
                    case_prefix=f"{shape} ",
                )
            )
        # The next shape's peer runs in another process, for which memory that torch keeps here is taken.
        torch.cuda.empty_cache()
    found.extra["workload"] = "bfloat16, random weights, greedy, ignore_eos; cases as in the generation bench"
    report = Report("gpu", found.rows, found.ratios, found.extra)
    report.print_table(Console())
    if options.json is not None:
        report.write_json(options.json)
    return 0


def _parity(folder: Path, shape: str, device: str, found: Findings) -> bool:
    """Greedy tokens of a few layers in float32 against transformers. False where one differs without a tie."""
    model = write_checkpoint(folder, shape, num_layers=PARITY_LAYERS, device=device)
    vocabulary: int = SHAPES[shape]["vocab_size"]
    drawn = free_jobs(4, seed=7, vocab_size=vocabulary)
    jobs = [Job(job.prompt[:length], PARITY_TOKENS) for job, length in zip(drawn, (15, 16, 33, 64), strict=True)]
    engine = Engine(model, GeneratorSettings(dtype="float32", max_model_len=256), device=device)
    try:
        ours = asyncio.run(_answers(engine, jobs))
    finally:
        engine.close()
    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32", local_files_only=True)
    reference = reference.eval().to(device)
    equal = excused = 0
    for job, answer in zip(jobs, ours, strict=True):
        ids = torch.tensor([job.prompt], device=device)
        with torch.inference_mode():
            out = reference.generate(
                ids, max_new_tokens=PARITY_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        theirs = out[0, len(job.prompt) :].tolist()
        first = next((i for i, (a, b) in enumerate(zip(answer, theirs, strict=True)) if a != b), None)
        if first is None:
            equal += 1
            continue
        with torch.inference_mode():
            best = reference(out[:, : len(job.prompt) + first]).logits[0, -1].float().topk(2).values
        excused += bool(best[0] - best[1] < TIE)
    words = f"{equal} of {len(jobs)} answers equal to transformers, {excused} differ first at a tie (float32)"
    found.extra.setdefault("parity", {})[shape] = words
    return equal + excused == len(jobs)


async def _answers(engine: Engine, jobs: list[Job]) -> list[list[int]]:
    ours = OurEngine(engine)
    return list(await asyncio.gather(*(ours.token_ids(job) for job in jobs)))


if __name__ == "__main__":
    sys.exit(main())
