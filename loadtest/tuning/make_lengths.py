"""Write token_lengths.json from the public data sets: MODEL BANKING77.jsonl.gz SQUAD.jsonl.gz.

    python -m loadtest.tuning.make_lengths MODEL_FOLDER banking77_train.jsonl.gz squad_v1_train.jsonl.gz

The texts themselves are not kept: a training step costs the same for any tokens of one length.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.generation.model_files import load_tokenizer
from loadtest.tuning.workload import DATA

COUNT = 512
_CLASSIFY = "Name the intent of the customer's message in a few words."
_ANSWER = "Answer the question from the passage in as few words as possible."
_SOURCE = (
    "classify: banking77 (Casanueva et al. 2020, CC BY 4.0), training texts; qa: SQuAD 1.1 (Rajpurkar et al. 2016, "
    "CC BY-SA 4.0), training questions with their paragraph. 512 of each at random, as chats of SmolLM2-135M-Instruct. "
    "shared: tokens of the template and the instruction that begin every prompt."
)


def main() -> None:
    """Encode, count and write."""
    model, banking, squad = (Path(argument) for argument in sys.argv[1:])
    tokenizer: Any = load_tokenizer(model)
    pairs = {
        "classify": (_CLASSIFY, [(row["text"], row["label"].replace("_", " ")) for row in _rows(banking)]),
        "qa": (
            _ANSWER,
            [
                (f"{row['context']}\n\nQuestion: {question['question']}", question["answers"][0]["text"])
                for row in _rows(squad)
                for question in row["questions"]
            ],
        ),
    }
    content: dict[str, Any] = {"source": _SOURCE}
    for case, (instruction, rows) in pairs.items():
        encoded = []
        for text, completion in random.Random(0).sample(rows, COUNT):
            messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
            written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            prompt = tokenizer.encode(written, add_special_tokens=False)
            encoded.append((prompt, len(tokenizer.encode(f"{completion}<|im_end|>", add_special_tokens=False))))
        first, last = min(prompt for prompt, _ in encoded), max(prompt for prompt, _ in encoded)
        content[case] = {
            "shared": next(place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
            "prompts": [len(prompt) for prompt, _ in encoded],
            "completions": [completion for _, completion in encoded],
        }
    DATA.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (row for row in map(json.loads, file) if "_provenance" not in row)


if __name__ == "__main__":
    main()
