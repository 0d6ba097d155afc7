"""Examples to train on: random tokens in the lengths of two public data sets."""

from __future__ import annotations

import json
import random
from pathlib import Path

from engine.tuning.training.examples import EncodedExample

DATA = Path(__file__).with_name("token_lengths.json")
CASES = ("classify", "qa")


def bench_examples(case: str, num_tokens: int, vocabulary: int) -> list[EncodedExample]:
    """Examples of `case` with about `num_tokens` tokens in all; as many always give the same ones.

    Each begins with the tokens that the template and the instruction give every example of the case.
    """
    lengths = json.loads(DATA.read_text(encoding="utf-8"))[case]
    generator = random.Random(case)
    shared = [generator.randrange(vocabulary) for _ in range(lengths["shared"])]
    examples: list[EncodedExample] = []
    used = 0
    for prompt, completion in zip(lengths["prompts"], lengths["completions"], strict=True):
        own = [generator.randrange(vocabulary) for _ in range(prompt - len(shared) + completion)]
        # Half of the last example may be too much; one is the least.
        if examples and used + (prompt + completion) / 2 > num_tokens:
            break
        examples.append(EncodedExample((*shared, *own), prompt))
        used += prompt + completion
    return examples
