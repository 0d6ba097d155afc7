"""Near-duplicates: what the index finds is what comparing every pair finds."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine.tuning.guard.near import MAX_CHARS, NEAR_JACCARD, NearIndex


def pieces(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def jaccard(one: str, other: str) -> float:
    return len(pieces(one) & pieces(other)) / len(pieces(one) | pieces(other))


def clusters_by_all_pairs(texts: list[str]) -> list[int]:
    cluster = list(range(len(texts)))
    for one in range(len(texts)):
        for other in range(one):
            if jaccard(texts[one], texts[other]) >= NEAR_JACCARD:
                low, high = sorted((cluster[one], cluster[other]))
                cluster = [low if each == high else each for each in cluster]
    return cluster


# Few letters, so that many pairs lie close to the threshold.
TEXTS = st.lists(st.text(alphabet="abc ", min_size=1, max_size=40), min_size=1, max_size=25)
VARIED = st.builds(
    lambda base, cuts: [base] + [base[:cut] + "x" + base[cut + 1 :] for cut in cuts],
    st.text(alphabet="abcdefghij ", min_size=20, max_size=120),
    st.lists(st.integers(0, 119), max_size=10),
)


@given(TEXTS | VARIED)
def test_clusters_are_those_of_comparing_every_pair(texts):
    assert NearIndex(texts).clusters() == clusters_by_all_pairs(texts)


@given(VARIED, st.text(alphabet="abcdefghijx ", min_size=1, max_size=120))
def test_nearest_of_another_text_is_the_most_similar_of_all_that_are_near(texts, other):
    for asked in (other, texts[0][1:] + "y"):
        best = max(jaccard(asked, text) for text in texts)
        found = NearIndex(texts).nearest(asked)
        if best < NEAR_JACCARD:
            assert found is None
        else:
            assert found is not None
            assert found[1] == best == jaccard(asked, texts[found[0]])


def long_text(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(280))


def test_long_texts_with_a_few_changed_words_are_clustered_and_others_with_half_in_common_are_not():
    base, stranger = long_text(0), long_text(1)
    changed = base.replace(base[100:110], "0123456789").replace(base[900:910], "9876543210")
    half = base[:900] + stranger[900:]
    assert len(pieces(base)) > 512
    assert NearIndex([base, stranger, changed, half]).clusters() == [0, 1, 0, 3]
    assert NearIndex([base, stranger]).nearest(changed) is not None
    assert NearIndex([base, stranger]).nearest(half) is None


def test_text_beyond_the_limit_is_compared_by_its_beginning_and_end():
    begin, end = long_text(0)[: MAX_CHARS // 2], long_text(1)[: MAX_CHARS // 2]
    assert NearIndex([begin + "middle " * 500 + end, begin + "other " * 700 + end]).clusters() == [0, 0]


def test_thousands_of_nearly_equal_texts_are_one_cluster():
    texts = [f"please tell me how to reset the password of account number {i}" for i in range(1500)]
    assert set(NearIndex(texts).clusters()) == {0}


def test_index_of_nothing_knows_nothing():
    assert NearIndex([]).clusters() == []
    assert NearIndex([]).nearest("a text") is None
