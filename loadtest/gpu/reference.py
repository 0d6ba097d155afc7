"""Greedy answers of transformers and PEFT in float32, which the engine's must equal."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from loadtest.generation.workloads import Job

TIE = 1e-4  # a difference is excused where the reference's two best logits lie this close


class Reference:
    """A checkpoint under transformers; the jobs' adapters are PEFT's."""

    def __init__(self, model: Path, device: str, adapters: Mapping[str, Path] | None = None) -> None:
        """Adapters by the name that jobs have."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32", local_files_only=True)
        self._model = loaded.eval().to(device)
        self._device = device
        self._has_adapters = bool(adapters)
        if adapters:
            from peft import PeftModel  # slow to import, and a shape's parity needs none

            first, *others = adapters.items()
            self._model = PeftModel.from_pretrained(self._model, first[1], adapter_name=first[0]).eval()
            for name, folder in others:
                self._model.load_adapter(folder, name)

    @torch.inference_mode()
    def answer(self, job: Job) -> list[int]:
        """Greedy tokens, as many as the job asks for."""
        ids = torch.tensor([job.prompt], device=self._device)
        with self._adapter(job.adapter):
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=job.num_output,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[int] = out[0, len(job.prompt) :].tolist()
        return tokens

    @torch.inference_mode()
    def is_tie(self, job: Job, beginning: Sequence[int]) -> bool:
        """Whether the two best tokens after the prompt and this beginning of an answer are as good as equal."""
        ids = torch.tensor([[*job.prompt, *beginning]], device=self._device)
        with self._adapter(job.adapter):
            best = self._model(input_ids=ids).logits[0, -1].float().topk(2).values
        return bool(best[0] - best[1] < TIE)

    @contextmanager
    def _adapter(self, name: str) -> Iterator[None]:
        if not self._has_adapters:
            yield
        elif name:
            self._model.set_adapter(name)
            yield
        else:
            with self._model.disable_adapter():
                yield


def compare(
    reference: Reference, jobs: Sequence[Job], ours: Sequence[list[int]], expected: Sequence[list[int]], to: str
) -> tuple[bool, str]:
    """Whether all answers equal the expected ones up to ties, and that in words; `to` names what is expected."""
    equal = excused = 0
    for job, mine, theirs in zip(jobs, ours, expected, strict=True):
        first = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
        if first is None:
            equal += 1
        else:
            excused += reference.is_tie(job, theirs[:first])
    words = f"{equal} of {len(jobs)} answers equal to {to}, {excused} differ first at a tie (float32)"
    return equal + excused == len(jobs), words


def free_memory() -> None:
    """Give back what models that are gone have left: engines hold themselves in cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
