"""Adapters for the tiny checkpoint, made and answered by PEFT itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ALL_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@contextmanager
def quiet() -> Iterator[None]:
    """What PEFT asks of transformers was renamed there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def write_tiny_adapter(
    folder: Path, base: Path, *, seed: int, rank: int = 4, targets: Sequence[str] = ALL_TARGETS, **config: object
) -> Path:
    """Save a random adapter for the checkpoint in `base`, strong enough to change most tokens. Returns `folder`."""
    options = {"lora_alpha": 2 * rank, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | config
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=rank, target_modules=[f"{target}_proj" for target in targets], **options),  # type: ignore[arg-type]
        )
        model.save_pretrained(folder)
    return folder


class PeftReference:
    """A checkpoint under PEFT, by default in float32, with adapters by name; the empty name is the base model."""

    def __init__(self, base: Path, adapters: dict[str, Path], *, dtype: torch.dtype = torch.float32) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
        self.vocab_size: int = self._model.config.vocab_size
        with quiet():
            for name, folder in adapters.items():
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(folder, name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=name).eval()

    def answer(self, adapter: str, prompt: Sequence[int], num_new: int) -> list[int]:
        """Greedy tokens by `generate`."""
        arguments = {
            "input_ids": torch.tensor([list(prompt)]),
            "attention_mask": torch.ones(1, len(prompt), dtype=torch.long),
            "max_new_tokens": num_new,
            "do_sample": False,
            "eos_token_id": None,
        }
        if not adapter:
            with self._model.disable_adapter():
                output = self._model.generate(**arguments)
        else:
            self._model.set_adapter(adapter)
            output = self._model.generate(**arguments)
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def weights(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name in the model."""
        tensors: dict[str, torch.Tensor] = self._model.state_dict()
        return tensors

    def logits(self, adapter: str, prompt: Sequence[int]) -> torch.Tensor:
        """[T, V] after every token of the prompt."""
        with torch.no_grad(), nullcontext() if adapter else self._model.disable_adapter():
            if adapter:
                self._model.set_adapter(adapter)
            logits: torch.Tensor = self._model(torch.tensor([list(prompt)])).logits[0]
        return logits
