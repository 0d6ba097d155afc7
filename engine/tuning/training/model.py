"""A frozen base model with a LoRA adapter to train, over packed batches."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine.errors import ModelSourceError
from engine.generation.adapters.inspection import TARGETS
from engine.generation.model_files import resolve_dtype, torch_multiplies_bfloat16
from engine.tuning.training.attention import ATTENTION
from engine.tuning.training.batches import shared_forwards
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.fused_lora import fuse_lora
from engine.tuning.training.loss import token_losses
from engine.tuning.training.packing import PackedBatch, pack
from engine.tuning.training.settings import TrainingSettings


def training_dtype(device: str) -> torch.dtype:
    """Of the base weights: bfloat16 where torch multiplies it in hardware, else float32."""
    if device.startswith("cuda"):
        # float16 has too little range for gradients without loss scaling.
        dtype = resolve_dtype("auto", device)
        return dtype if dtype == torch.bfloat16 else torch.float32
    return torch.bfloat16 if torch_multiplies_bfloat16() else torch.float32


class AdapterModel:
    """The checkpoint in `base` with a new adapter under PEFT, its weights in float32. Never in training mode.

    A metric gets this object: `peft` is the PeftModel, which `generate` works on within `generating()`, and
    `example_losses` scores completions. Raises: ModelSourceError when the checkpoint cannot be loaded.
    """

    def __init__(
        self, base: Path, settings: TrainingSettings, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self.device = device
        self.dtype = dtype or training_dtype(device)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                base, dtype=self.dtype, local_files_only=True, trust_remote_code=False, attn_implementation=ATTENTION
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelSourceError(f"{base}: the model cannot be loaded ({' '.join(str(error).split())}).") from None
        self._lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            use_rslora=False,
            target_modules=[f"{target}_proj" for target in TARGETS],
            task_type="CAUSAL_LM",
        )
        # Made on the CPU before the move, so that a seed gives the same start on every device.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # What PEFT asks of transformers was renamed there.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.manual_seed(settings.seed)
            self.peft: Any = get_peft_model(model, self._lora).to(device).eval()
        fuse_lora(self.peft)
        self._causal_lm: Any = self.peft.get_base_model()
        trained = {name: weight for name, weight in self.peft.named_parameters() if weight.requires_grad}
        # Named as PEFT names them in a file, and in one order everywhere.
        self.parameters: dict[str, nn.Parameter] = {
            name.replace(".default.", "."): trained[name] for name in sorted(trained)
        }

    @property
    def num_base_parameters(self) -> int:
        """Weights of the base model, one that is used twice counted once."""
        return sum(weight.numel() for weight in self.peft.parameters() if not weight.requires_grad)

    def token_losses(self, batch: PackedBatch) -> Tensor:
        """[C] float32 negative log likelihood of each target of the batch."""
        hidden = self._causal_lm.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, packing=batch.packing
        ).last_hidden_state[0]
        head = self._causal_lm.lm_head
        return token_losses(hidden[batch.predicting], head.weight, head.bias, batch.targets)

    @torch.no_grad()
    def example_losses(self, examples: Sequence[EncodedExample], *, forward_tokens: int = 2048) -> list[float]:
        """Negative log likelihood of each example's completion, summed over its tokens; any number of examples.

        Completions of one prompt, such as every label of a text, cost little more than the prompt once.
        """
        losses = [0.0] * len(examples)
        for indices in shared_forwards(examples, forward_tokens):
            batch = pack([examples[index] for index in indices], self.device)
            # On the CPU, where sums have one order: a GPU adds in whatever order its threads arrive.
            sums = torch.zeros(len(indices), dtype=torch.float64)
            sums.index_add_(0, batch.owners, self.token_losses(batch).double().cpu())
            for index, loss in zip(indices, sums.tolist(), strict=True):
                losses[index] = loss
        return losses

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The PeftModel with the attention that `generate` and padded batches need."""
        self._causal_lm.set_attn_implementation("sdpa")
        try:
            yield self.peft
        finally:
            self._causal_lm.set_attn_implementation(ATTENTION)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the adapter on the CPU, by PEFT's names in a file."""
        return {name: weight.detach().to("cpu", copy=True) for name, weight in self.parameters.items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put `weights`, as `weights()` gave them, into the adapter."""
        for name, weight in self.parameters.items():
            weight.copy_(weights[name])

    def config_json(self, base_model: str) -> bytes:
        """PEFT's adapter_config.json for the adapter, the same bytes in every process."""
        config = self._lora.to_dict() | {"base_model_name_or_path": base_model, "inference_mode": True}
        # PEFT keeps targets in a set, whose order changes from process to process.
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        return (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors on the CPU: names, shapes, dtypes and bytes."""
    digest = sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
