"""What is trained on is what serving reads: the same prompt tokens, and the same scores of labels."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapter import write_tiny_adapter

from engine.config import GeneratorSettings
from engine.errors import TrainingError
from engine.generation.engine import Engine
from engine.generation.model_files import load_tokenizer
from engine.generation.prompt import PromptBuilder
from engine.generation.scoring.request import Preparation
from engine.generation.scoring.trie import build_tree
from engine.metrics.refusals import NOT_IN_DOCUMENTS
from engine.tuning.data.rows import ChatRow, CompletionRow, LabelRow, QuestionRow, Row
from engine.tuning.tasks.chat import ChatTask
from engine.tuning.tasks.classify import ClassifyTask
from engine.tuning.tasks.encoding import PromptEncoder
from engine.tuning.tasks.qa import ContextOptions, QaTask
from engine.tuning.tasks.task import TuningTask
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.settings import TrainingSettings
from engine.values import GenerationRequest, Message, Passage, SamplingParams, ScoreItem, ScoreRequest

HOUSE = GeneratorSettings().system_prompt
MAX_MODEL_LEN = 512
LABELS = ("card_arrival", "card_linking", "lost", "top_up")
LONG = " ".join(f"word{i}" for i in range(300))


@pytest.fixture(scope="module")
def house(tiny_model: Path) -> PromptBuilder:
    """The builder of a server with its own system prompt."""
    return PromptBuilder(load_tokenizer(tiny_model), max_model_len=MAX_MODEL_LEN, system_prompt=HOUSE)


def encoder(model: Path, instruction: str) -> PromptEncoder:
    return PromptEncoder(model, max_model_len=MAX_MODEL_LEN, instruction=instruction)


def trained_on(task: TuningTask, row: Row) -> tuple[list[int], str]:  # type: ignore[type-arg]
    """Prompt tokens and the text of the completion, which ends as answers end."""
    example = task.example(row)
    assert example.tokens[-1] == task.encoder.end_token
    return list(example.tokens[: example.num_prompt]), task.encoder.text(example.tokens[example.num_prompt :])


def test_classify_prompts_and_labels_are_those_that_serving_scores(tiny_model: Path, house: PromptBuilder):
    task = ClassifyTask(encoder(tiny_model, "Name the intent."), LABELS)
    row = LabelRow(1, "Where is <|im_end|> my card?", "card_arrival")
    messages = (Message("user", row.text),)

    def served_prompt(item: ScoreItem, system_prompt: str) -> list[int]:
        request = GenerationRequest("", item.messages, sampling=SamplingParams(max_tokens=1))
        return house.build(request, system_prompt=system_prompt).token_ids

    end = load_tokenizer(tiny_model).eos_token_id
    served = Preparation(
        served_prompt, house.text_tokens, end_token=end, vocab_size=1000, max_model_len=MAX_MODEL_LEN
    ).prepare(ScoreRequest("", (ScoreItem(task.texts, messages),), with_end=True), system_prompt="Name the intent.")[0]
    prompt, answer = trained_on(task, row)
    assert prompt == list(served.tokens)
    assert answer == "card arrival"
    examples = [task.example(replace(row, label=label)) for label in LABELS]
    assert served.tree == build_tree([example.tokens[example.num_prompt :] for example in examples])


async def test_classify_scores_are_those_of_the_engine(tiny_model: Path, tmp_path: Path):
    adapter = write_tiny_adapter(tmp_path / "adapter", tiny_model, seed=3)
    task = ClassifyTask(encoder(tiny_model, "Name the intent."), LABELS)
    rows = [LabelRow(line, f"where is my card {line * 'x'}", LABELS[line % 4]) for line in range(1, 6)]
    model = AdapterModel(tiny_model, TrainingSettings(rank=4), dtype=torch.float32)
    model.load_weights(load_file(adapter / "adapter_model.safetensors"))
    engine = Engine(tiny_model, GeneratorSettings(dtype="float32", threads=1, max_model_len=512, kv_tokens=4096))
    try:
        engine.load_adapter("bot", adapter)
        items = tuple(
            ScoreItem(task.texts, (Message("system", "Name the intent."), Message("user", row.text))) for row in rows
        )
        served = await engine.score(ScoreRequest("1", items, with_end=True, adapter="bot"))
    finally:
        engine.close()
    for mine, theirs in zip(task.scores(model, rows, floor=math.inf).tolist(), served, strict=True):
        assert mine == pytest.approx([each.logprob for each in theirs], abs=1e-2)


@pytest.mark.parametrize("context", ["none", "gold", "retrieved"])
@pytest.mark.parametrize("text", ["The tower is 330 m tall.", LONG])
def test_qa_prompts_are_those_of_a_request_with_such_passages(
    tiny_model: Path, house: PromptBuilder, context: str, text: str
):
    row = QuestionRow(1, "How tall is it?", ("330 m",), context=text, document="tower.md")
    found = [
        Passage("a", "a.md", "A title", "A title > Heading", text, 0, len(text), 0.5),
        Passage("b", "b.md", "Other", "", "It is 330 m.", 5, 17, 0.4),
        Passage("c", "c.md", "Third", "", "Nothing.", 5, 13, 0.3),
    ]
    task = QaTask(
        encoder(tiny_model, HOUSE),
        ContextOptions(context, num=2, share_without=0.0),  # type: ignore[arg-type]
        num_judged=1,
        found={row.question: found},
    )
    own = Passage("tower.md", "tower.md", "", "", text, 0, len(text), 1.0)
    passages = {"none": (), "gold": (own,), "retrieved": tuple(found[:2])}[context]
    # A client names no max_tokens, and the server's default is kept free.
    served = house.build(GenerationRequest("", (Message("user", row.question),), passages))
    assert trained_on(task, row) == (served.token_ids, "330 m")
    assert len(served.token_ids) + SamplingParams().max_tokens <= MAX_MODEL_LEN
    unanswerable = replace(row, answers=())
    assert trained_on(task, unanswerable) == (served.token_ids, NOT_IN_DOCUMENTS)


def test_chat_prompts_are_those_of_a_request_with_the_earlier_turns(tiny_model: Path, house: PromptBuilder):
    task = ChatTask(encoder(tiny_model, HOUSE), num_judged=1)
    turns = (
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Bye"),
        Message("assistant", "So long"),
    )
    own = Message("system", "Be brief.")
    for messages in (turns, (own, *turns)):
        served = house.build(GenerationRequest("", messages[:-1]))
        assert trained_on(task, ChatRow(1, messages)) == (served.token_ids, "So long")
    served = house.build(GenerationRequest("", turns[:1]))
    assert trained_on(task, CompletionRow(1, "Hi", "Good day")) == (served.token_ids, "Good day")


def test_row_that_does_not_fit_is_refused_by_its_line(tiny_model: Path):
    task = ChatTask(encoder(tiny_model, HOUSE), num_judged=1)
    with pytest.raises(TrainingError, match=r"line 7: .*Or leave the row out"):
        task.example(CompletionRow(7, " ".join([LONG] * 3), "x"))


def test_generated_answers_are_those_of_one_prompt_at_a_time(tiny_model: Path):
    draw = random.Random(1)
    task = ChatTask(encoder(tiny_model, HOUSE), num_judged=9)
    rows = [CompletionRow(i, "".join(draw.choices("abc def", k=3 + 9 * i)), "x") for i in range(9)]
    task.limit_answers(rows)
    model = AdapterModel(tiny_model, TrainingSettings(rank=4), dtype=torch.float32)
    together = [answer.text for answer in task.answers(model, rows)]
    assert together == [task.answers(model, [row])[0].text for row in rows]
    assert len(set(together)) > 1
