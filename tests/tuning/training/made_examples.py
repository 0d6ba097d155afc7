"""Random examples that can be learned."""

from __future__ import annotations

import random

from engine.tuning.training.examples import EncodedExample


def random_examples(count: int, *, seed: int = 0, longest: int = 40, words: int = 300) -> list[EncodedExample]:
    """Examples of mixed lengths whose completion says what their first token is, so that they can be learned."""
    generator = random.Random(seed)
    examples = []
    for _ in range(count):
        kind = generator.randrange(4)
        prompt = [3 + kind, *(generator.randrange(3, words) for _ in range(generator.randrange(2, longest)))]
        completion = [50 + kind] * generator.randrange(1, 4)
        examples.append(EncodedExample((*prompt, *completion), len(prompt)))
    return examples
