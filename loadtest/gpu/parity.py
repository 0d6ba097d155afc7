"""The engine's answers on the device against transformers and PEFT: plain, with adapters, drafts and grammars."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.generation.runner import Runner, StepLogits
from engine.generation.step import Step
from engine.values import GenerationRequest, Grammar, SamplingParams
from loadtest.generation.adapters import write_adapter
from loadtest.generation.random_checkpoint import SHAPES, write_checkpoint
from loadtest.generation.systems import OurEngine
from loadtest.generation.workloads import Job, copying_jobs, free_jobs, read_trace
from loadtest.gpu.graphs import check_graphs
from loadtest.gpu.record import Record
from loadtest.gpu.reference import Reference, compare, free_memory

NUM_LAYERS = 2
NUM_TOKENS = 24
# As strong as the checkpoint's own weights, so that an adapter changes every answer.
ADAPTER_STD = 0.1
SETTINGS = GeneratorSettings(dtype="float32", max_model_len=1024, kv_tokens=16384)
GRAMMARS = (
    Grammar("choice", json.dumps(["Refund the customer.", "Ask for the invoice number.", "Close the ticket."])),
    Grammar("regex", r"[A-Z]{3}-\d{4}"),
    Grammar(
        "json_schema",
        json.dumps(
            {
                "type": "object",
                "properties": {"label": {"enum": ["billing", "login"]}, "is_urgent": {"type": "boolean"}},
                "required": ["label", "is_urgent"],
                "additionalProperties": False,
            }
        ),
    ),
)


class _CountingRunner(Runner):
    """Counts the drafts of all steps."""

    num_drafts = 0

    def run(self, step: Step) -> StepLogits:
        """See Runner."""
        _CountingRunner.num_drafts += sum(len(sequence.drafts) for sequence in step.sequences)
        return super().run(step)


class _CountingEngine(Engine):
    runner_class = _CountingRunner


def check_tokens(record: Record, shape: str, device: str, folder: Path) -> None:
    """Greedy tokens of a few layers in float32 against transformers, and recorded steps against launched ones."""
    model = write_checkpoint(folder, shape, num_layers=NUM_LAYERS, device=device)
    jobs = _jobs(SHAPES[shape]["vocab_size"], (15, 16, 33, 64))
    ours, num_recorded = _answered(model, SETTINGS, device, jobs)
    launched: list[list[int]] = []
    if device == "cuda":
        launched, _ = _answered(model, SETTINGS.model_copy(update={"cuda_graphs": "off"}), device, jobs)
    reference = Reference(model, device)
    expected = [reference.answer(job) for job in jobs]
    is_right, words = compare(reference, jobs, ours, expected, "transformers")
    record.check(shape, is_right=is_right, words=words)
    if launched:
        is_right, words = compare(reference, jobs, ours, launched, f"those without graphs; {num_recorded} recorded")
        record.check(f"tokens with graphs {shape}", is_right=is_right and num_recorded > 0, words=words)
    del reference
    free_memory()
    record.attempt(f"graphs {shape}", lambda: check_graphs(record, shape, device, model), estimate_s=5)


def _answered(
    model: Path, settings: GeneratorSettings, device: str, jobs: Sequence[Job]
) -> tuple[list[list[int]], int]:
    """An engine's answers, and how many steps it has recorded."""
    engine = Engine(model, settings, device=device)
    try:
        return asyncio.run(answers(engine, jobs)), engine._runner.num_recorded
    finally:
        engine.close()
        del engine
        free_memory()


def check_features(record: Record, shape: str, device: str, folder: Path) -> None:
    """Adapters, drafts and grammars of one engine, each checked whatever the others give."""
    model = write_checkpoint(folder / "model", shape, num_layers=NUM_LAYERS, device=device)
    _spelling_tokenizer().save_pretrained(model)
    adapters = {
        name: write_adapter(folder / name, model, seed=seed, std=ADAPTER_STD) for seed, name in enumerate(("A", "B"))
    }
    engine = _CountingEngine(model, SETTINGS, device=device)
    try:
        record.attempt(f"adapters {shape}", lambda: check_adapters(record, shape, device, model, engine, adapters))
        record.attempt(f"drafts {shape}", lambda: _check_drafts(record, shape, device, model, engine))
        record.attempt(f"grammars {shape}", lambda: _check_grammars(record, shape, engine))
    finally:
        engine.close()


def check_adapters(
    record: Record, shape: str, device: str, model: Path, engine: Engine, adapters: dict[str, Path]
) -> None:
    """Two adapters and the base model in one batch, against PEFT one by one."""
    names = ["", "A", "B", "A", "", "B"]
    drawn = _jobs(engine.vocab_size, (15, 16, 33, 64, 40, 17))
    jobs = [replace(job, adapter=name) for job, name in zip(drawn, names, strict=True)]
    for name, path in adapters.items():
        engine.load_adapter(name, path)
    ours = asyncio.run(answers(engine, jobs))
    reference = Reference(model, device, adapters)
    expected = [reference.answer(job) for job in jobs]
    is_right, words = compare(reference, jobs, ours, expected, "PEFT")
    # An adapter that changes nothing would show nothing.
    changed = sum(reference.answer(replace(job, adapter="")) != mine for job, mine in zip(jobs, expected, strict=True))
    words += f"; adapters change {changed} of {sum(map(bool, names))}"
    record.check(f"adapters {shape}", is_right=is_right and changed == sum(map(bool, names)), words=words)


def _check_drafts(record: Record, shape: str, device: str, model: Path, engine: Engine) -> None:
    trace = read_trace().within(engine.vocab_size)
    # Prompts that are repeated in themselves, and noise in whose answers a random model repeats itself.
    jobs = [replace(job, num_output=64, drafts=True) for job in copying_jobs(trace, 4)]
    jobs += [replace(job, drafts=True) for job in free_jobs(4, seed=3, vocab_size=engine.vocab_size)]
    plain = asyncio.run(answers(engine, [replace(job, drafts=False) for job in jobs]))
    before = _CountingRunner.num_drafts
    drafted = asyncio.run(answers(engine, jobs))
    count = _CountingRunner.num_drafts - before
    is_right, words = compare(Reference(model, device), jobs, drafted, plain, "those without drafts")
    words += f"; {count} tokens were drafted" + ("" if count else ", so this shows nothing")
    record.check(f"drafts {shape}", is_right=is_right, words=words)


def _check_grammars(record: Record, shape: str, engine: Engine) -> None:
    """Greedy and drawn answers, all in one batch with free ones."""
    asked = [(grammar, temperature) for grammar in GRAMMARS for temperature in (0.0, 1.0)]

    async def ask() -> list[str]:
        return list(
            await asyncio.gather(*(_text(engine, number, *each) for number, each in enumerate(asked)), _free(engine))
        )[: len(asked)]

    texts = asyncio.run(ask())
    wrong = [text for (grammar, _), text in zip(asked, texts, strict=True) if not follows(grammar, text)]
    words = f"{len(texts) - len(wrong)} of {len(texts)} answers follow their grammar"
    record.check(f"grammars {shape}", is_right=not wrong, words=words + (f"; not: {wrong[:3]}" if wrong else ""))
    record.found.extra["grammar_answers"] = texts


def follows(grammar: Grammar, text: str) -> bool:
    """Whether a text is one of the grammar's, by Python's own means."""
    if grammar.kind == "choice":
        return text in json.loads(grammar.source)
    if grammar.kind == "regex":
        return re.fullmatch(grammar.source, text) is not None
    try:
        value = json.loads(text)
    except ValueError:
        return False
    properties = json.loads(grammar.source)["properties"]
    return (
        isinstance(value, dict)
        and value.keys() == properties.keys()
        and value["label"] in properties["label"]["enum"]
        and isinstance(value["is_urgent"], bool)
    )


async def _text(engine: Engine, number: int, grammar: Grammar, temperature: float) -> str:
    # A random model fills JSON with as much white space as the grammar lets it.
    sampling = SamplingParams(max_tokens=512, temperature=temperature, seed=number)
    prompt = _jobs(engine.vocab_size, (20 + number,))[0].prompt
    request = GenerationRequest(f"grammar {number}", (), sampling=sampling, prompt_token_ids=prompt, grammar=grammar)
    return "".join([delta.text async for delta in engine.submit(request)])


async def _free(engine: Engine) -> str:
    await OurEngine(engine).answer(_jobs(engine.vocab_size, (30,))[0], "beside grammars")
    return ""


async def answers(engine: Engine, jobs: Sequence[Job]) -> list[list[int]]:
    """The greedy answers to all jobs, in one batch."""
    ours = OurEngine(engine)
    return list(await asyncio.gather(*(ours.token_ids(job) for job in jobs)))


def _jobs(vocab_size: int, lengths: Sequence[int]) -> list[Job]:
    drawn = random.Random(7)
    return [Job(tuple(drawn.randrange(100, vocab_size) for _ in range(n)), NUM_TOKENS, drafts=False) for n in lengths]


def _spelling_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that a grammar's texts can be spelled. Ids 0 and 1 are the checkpoint's padding and end."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["Ask the customer for the number of the invoice."], trainer)
    template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", chat_template=template
    )
