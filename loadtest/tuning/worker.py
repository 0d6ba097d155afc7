"""One training system in a process of its own, spoken to in lines of JSON, so that its memory is its own.

    SYSTEM MODEL THREADS   {"case": "classify", "num_tokens": 4000, "batch_tokens": 1024}
                           ->  {"seconds": 9.1, "tokens": 4011, "loss": 10.8, "peak_memory_bytes": 2100000000}

Seconds are those of the steps; loading the model and writing files are left out on both sides.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging

from engine.tuning.training.events import Event, Stepped
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.result import peak_memory_bytes
from engine.tuning.training.settings import TrainingSettings
from engine.tuning.training.trainer import BaseModel, train
from loadtest.bench_format import OURS
from loadtest.tuning.workload import bench_examples

SETTINGS = TrainingSettings(epochs=1, evaluations_per_epoch=1)
BEST_FLOAT32, BEST_BFLOAT16, DEFAULTS = "peft trainer float32", "peft trainer bfloat16", "peft trainer defaults"
DEFAULT_BATCH_EXAMPLES = 8


def run_ours(model: Path, examples: Sequence[EncodedExample], batch_tokens: int) -> tuple[float, float]:
    """One epoch of ours: seconds of its steps, and the mean loss."""
    steps: list[Stepped] = []

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            steps.append(event)

    shortest = min(examples, key=lambda example: len(example.tokens))
    settings = replace(SETTINGS, batch_tokens=batch_tokens)
    with tempfile.TemporaryDirectory() as folder:
        result = train(BaseModel(model, "bench", ""), examples, [shortest], settings, Path(folder), on_event=listen)
    tokens = sum(len(example.tokens) for example in examples)
    return tokens / result.run.tokens_per_s, sum(step.loss for step in steps) / len(steps)


def run_trainer(
    model: Path, examples: Sequence[EncodedExample], batch_tokens: int, *, system: str
) -> tuple[float, float]:
    """One epoch of transformers' Trainer over PEFT with completion-only labels: seconds of its steps, mean loss."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = perf_counter() - self.started

    mean = sum(len(example.tokens) for example in examples) / len(examples)
    is_default = system == DEFAULTS
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    lora = LoraConfig(r=SETTINGS.rank, lora_alpha=SETTINGS.alpha, target_modules=targets, task_type="CAUSAL_LM")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=DEFAULT_BATCH_EXAMPLES if is_default else max(1, round(batch_tokens / mean)),
            train_sampling_strategy="random" if is_default else "group_by_length",
            learning_rate=SETTINGS.learning_rate,
            bf16=system == BEST_BFLOAT16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows: Any = [
            {
                "input_ids": list(example.tokens),
                "labels": [-100] * example.num_prompt + list(example.tokens[example.num_prompt :]),
            }
            for example in examples
        ]
        trainer = Trainer(
            get_peft_model(base, lora), arguments, train_dataset=rows, data_collator=_padded, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        done = trainer.train()
    return clock.seconds, float(done.training_loss)


def _padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest row, as transformers' DataCollatorForSeq2Seq does with a tokenizer."""
    longest = max(len(row["input_ids"]) for row in rows)

    def column(values: Sequence[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([value + [fill] * (longest - len(value)) for value in values])

    return {
        "input_ids": column([row["input_ids"] for row in rows], 0),
        "attention_mask": column([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": column([row["labels"] for row in rows], -100),
    }


def main() -> None:
    """Answer requests from standard input until it ends."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not get between the lines
    system, path, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = Path(path)
    vocabulary = AutoConfig.from_pretrained(model, local_files_only=True).vocab_size

    def ours(examples: Sequence[EncodedExample], batch_tokens: int) -> tuple[float, float]:
        return run_ours(model, examples, batch_tokens)

    def trainer(examples: Sequence[EncodedExample], batch_tokens: int) -> tuple[float, float]:
        return run_trainer(model, examples, batch_tokens, system=system)

    run: Callable[[Sequence[EncodedExample], int], tuple[float, float]] = ours if system == OURS else trainer
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        examples = bench_examples(request["case"], request["num_tokens"], vocabulary)
        try:
            seconds, loss = run(examples, request["batch_tokens"])
            reply: dict[str, Any] = {
                "seconds": seconds,
                "tokens": sum(len(example.tokens) for example in examples),
                "loss": loss,
                "peak_memory_bytes": peak_memory_bytes(),
            }
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
