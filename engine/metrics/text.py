"""How near an answer is to the right ones, by words.

Exact match and token F1 are SQuAD's (Rajpurkar et al., arXiv:1606.05250): lower case, no punctuation, no articles.
ROUGE-L is the F-measure of the longest common subsequence (Lin, 2004), over the same words with articles kept.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_answer(text: str) -> str:
    """`text` as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, targets: Sequence[str]) -> float:
    """1 where the answer is one of the targets, else 0."""
    return float(plain_answer(answer) in {plain_answer(target) for target in targets})


def token_f1(answer: str, targets: Sequence[str]) -> float:
    """The best F1 over the targets of the words in common, in [0, 1]."""
    return max(_f1(plain_answer(answer).split(), plain_answer(target).split()) for target in targets)


def rouge_l(answer: str, targets: Sequence[str]) -> float:
    """The best ROUGE-L over the targets, in [0, 1]."""
    said = answer.lower().translate(_PUNCTUATION).split()
    return max(_rouge(said, target.lower().translate(_PUNCTUATION).split()) for target in targets)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return _harmonic(sum((Counter(said) & Counter(wanted)).values()), len(said), len(wanted))


def _rouge(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(wanted, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return _harmonic(lengths[-1], len(said), len(wanted))


def _harmonic(common: int, num_said: int, num_wanted: int) -> float:
    """F1 of precision `common / num_said` and recall `common / num_wanted`."""
    return 2 * common / (num_said + num_wanted)
