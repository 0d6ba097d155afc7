"""transformers' `generate` and `generate_batch` in a process of their own, spoken to in lines of JSON.

A second thread team in one process makes OpenMP put threads to sleep between parallel regions, so a peer beside our
engine would slow both. The clock runs here, around the generation alone.

    {"system": "generate", "prompts": [[1, 2], ...], "num_output": [64, ...], "clients": 8}  ->  {"seconds": 1.5}
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

KV_BLOCK_TOKENS = 32


class Peer:
    """The model, in bfloat16 unless told otherwise."""

    def __init__(self, path: str, threads: int, dtype: str, device: str) -> None:
        torch.set_num_threads(threads)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], num_output: list[int], clients: int) -> float:
        """Batches of `clients` prompts, padded on the left; each runs to its longest answer. Returns seconds."""
        started = time.perf_counter()
        for first in range(0, len(prompts), clients):
            batch, wanted = prompts[first : first + clients], num_output[first : first + clients]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch], device=self._device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=self._device)
            output = self._model.generate(
                ids, attention_mask=mask, max_new_tokens=max(wanted), do_sample=False, eos_token_id=None, pad_token_id=0
            )
            assert output.shape[1] == longest + max(wanted)
            output.tolist()  # a GPU is waited for
        return time.perf_counter() - started

    @torch.inference_mode()
    def generate_batch(self, prompts: list[list[int]], num_output: list[int], clients: int) -> float:
        """All prompts through transformers' continuous batching, `clients` at a time. Returns seconds."""
        # Not every transformers that we run with has it, and `generate` needs none.
        from transformers import ContinuousBatchingConfig

        longest = max(len(prompt) + wanted for prompt, wanted in zip(prompts, num_output, strict=True))
        config = ContinuousBatchingConfig(
            page_size=KV_BLOCK_TOKENS,
            num_blocks=(longest // KV_BLOCK_TOKENS + 2) * clients,
            max_batch_tokens=max(512, clients),
            max_requests_per_batch=clients,
        )
        generation = GenerationConfig(max_new_tokens=max(num_output), do_sample=False, eos_token_id=-1, pad_token_id=0)
        started = time.perf_counter()
        results = self._model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=config, warmup=False
        )
        seconds = time.perf_counter() - started
        short = [len(r.generated_tokens) for r in results.values() if len(r.generated_tokens) != max(num_output)]
        assert len(results) == len(prompts) and not short, f"{len(results)} of {len(prompts)} answers, short: {short}"
        return seconds


def main() -> None:
    """Answer requests from standard input until it ends."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    replies, sys.stdout = sys.stdout, sys.stderr  # what the library prints must not get between the lines
    path, threads, dtype, device = sys.argv[1:]
    peer = Peer(path, int(threads), dtype, device)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        run = {"generate": peer.generate, "generate_batch": peer.generate_batch}[request.pop("system")]
        try:
            reply: dict[str, Any] = {"seconds": run(**request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
