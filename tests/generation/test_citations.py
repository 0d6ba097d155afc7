"""Sentences of real-looking answers, backed by passages and not."""

import pytest

from engine.generation.citations import Citation, cite
from engine.values import Passage


def passage(text: str, title: str = "", heading: str = "") -> Passage:
    return Passage("chunk", "document", title, heading, text, 0, len(text), 1.0)


SNAPSHOTS = passage(
    "Fly.io takes daily block-level snapshots of volumes. Snapshots are stored for 5 days by default, and you can "
    "set the retention to a number of days between 1 and 60 with `fly volumes update`.",
    "Manage volume snapshots",
)
SECRETS = passage(
    "Secrets are stored in an encrypted vault. Use `fly secrets set KEY=value` to set one or more secrets; setting "
    "a secret restarts each Machine of the app unless you pass the --stage option.",
    "Set secrets",
)
PRICING = passage("Stopped Machines are charged for their root file system only: $0.15 per GB for 30 days.", "Pricing")
PASSAGES = [SNAPSHOTS, SECRETS, PRICING]


def cited(answer: str) -> list[tuple[str, int]]:
    return [(answer[c.start : c.end], c.passage) for c in cite(answer, PASSAGES)]


def test_verbatim_copy_is_cited_in_full():
    answer = "Snapshots are stored for 5 days by default, and you can set the retention to a number of days."
    assert cite(answer, PASSAGES) == [Citation(0, len(answer), 0, 1.0)]


def test_each_sentence_is_cited_to_its_own_passage():
    answer = (
        "Use fly secrets set to set a secret. Volume snapshots are taken daily and stored for 5 days. "
        "Stopped Machines are charged for their root file system."
    )
    assert [index for _, index in cited(answer)] == [1, 0, 2]


def test_paraphrase_with_other_inflections_and_word_order_is_cited():
    answer = "A volume's snapshot is stored by default for 5 days."
    assert cited(answer) == [(answer, 0)]


def test_unrelated_sentence_between_backed_ones_is_left_out():
    answer = (
        "Secrets are stored in an encrypted vault. Penguins spend most of their lives in cold southern seas. "
        "Setting a secret restarts each Machine."
    )
    assert cited(answer) == [
        ("Secrets are stored in an encrypted vault.", 1),
        ("Setting a secret restarts each Machine.", 1),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Yes.",
        "5 days.",
        "I do not know.",
        "Sorry, the passages do not hold the answer to this question.",
        "The capital of France is Paris, which lies on the Seine.",
        "You can use it when you want to, and that is all.",
        "```\n```",
    ],
)
def test_answer_without_enough_of_its_own_words_in_a_passage_has_no_citation(answer: str):
    assert cite(answer, PASSAGES) == []


def test_sentence_with_a_number_that_no_passage_holds_is_not_cited():
    assert cite("Snapshots are stored for 14 days by default.", PASSAGES) == []


def test_shared_words_that_are_scattered_over_the_passage_are_no_evidence():
    scattered = passage(
        "The king wore red. Trees have leaves. A ship sailed north. Bread was baked. Snow fell on a roof."
    )
    assert cite("North of the trees, the king's bread.", [scattered]) == []


def test_list_marks_and_reference_marks_are_no_part_of_the_claim():
    answer = "1. Secrets are stored in an encrypted vault [2].\n2. Snapshots of volumes are taken daily.\n- Bananas."
    assert cited(answer) == [
        ("Secrets are stored in an encrypted vault [2].", 1),
        ("Snapshots of volumes are taken daily.", 0),
    ]


def test_abbreviations_and_dotted_names_do_not_end_a_sentence():
    config = passage("Set the primary region in fly.toml, e.g. to ams or to fra, before the first deploy.")
    answer = "Set the primary region in fly.toml, e.g. to ams, before the first deploy. Bye."
    assert [answer[c.start : c.end] for c in cite(answer, [config])] == [answer.removesuffix(" Bye.")]


def test_score_is_the_share_of_content_words_that_the_passage_holds():
    answer = "Secrets are stored in an encrypted purple vault."
    assert cite(answer, PASSAGES) == [Citation(0, len(answer), 1, 4 / 5)]


def test_better_backing_wins_and_equal_backing_takes_the_first():
    partial = passage("Secrets are stored in a vault, which somebody encrypted.")
    answer = "Secrets are stored in an encrypted vault."
    assert cite(answer, [partial, SECRETS])[0].passage == 1
    assert cite(answer, [SECRETS, SECRETS])[0].passage == 0


def test_chinese_and_japanese_sentences_are_compared_without_spaces():
    passages = [
        passage("快照默认保留五天。之后自动删除。"),
        passage("シークレットは暗号化された保管庫に保存されます。"),
    ]
    answer = "快照默认保留五天。今天天气很好，我们去公园散步。シークレットは暗号化された保管庫に保存されます。"
    assert [(answer[c.start : c.end], c.passage, c.score) for c in cite(answer, passages)] == [
        ("快照默认保留五天。", 0, 1.0),
        ("シークレットは暗号化された保管庫に保存されます。", 1, 1.0),
    ]


def test_title_and_heading_count_as_the_passage():
    titled = passage("They are kept for five days.", "Volumes", "Snapshot retention")
    assert cite("Volume snapshot retention: snapshots are kept for five days.", [titled])[0].score == 1.0


def test_without_passages_nothing_is_cited():
    assert cite("Secrets are stored in an encrypted vault.", []) == []


def test_answer_that_repeats_one_character_for_ever_is_read_in_linear_time():
    assert cite("Secrets " + "." * 200_000 + " vault", PASSAGES) == []
    assert cite("?" * 200_000, PASSAGES) == []
