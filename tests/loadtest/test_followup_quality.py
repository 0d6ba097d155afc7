from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from retrieval.stub_encoder import StubEncoder

from engine.values import Message
from loadtest import followup_quality
from loadtest.followup_quality import (
    GAIN,
    GENERATOR,
    GENERATOR_GAIN,
    HISTORY,
    LAST,
    RULES,
    SYSTEMS,
    Conversation,
    main,
    mean_interval,
    measure,
    read_conversations,
    recalls,
)

VOLUMES = {"document_id": "a", "text": "resize a volume with the extend command"}
SECRETS = {"document_id": "b", "text": "secrets are set once and shown never"}


def row(*turns: str, contexts: tuple[dict[str, str], ...], answerability: str = "ANSWERABLE") -> dict[str, object]:
    speakers = ("user", "agent")
    return {
        "conversation_id": turns[0],
        "answerability": answerability,
        "turns": [{"speaker": speakers[number % 2], "text": text} for number, text in enumerate(turns)],
        "contexts": list(contexts),
    }


def write(path: Path, *rows: dict[str, object]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in ({"_provenance": {}}, *rows))
    return path


def test_conversations_without_an_answer_give_passages_but_no_question(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl.gz",
        row("How do I resize a volume?", contexts=(VOLUMES,)),
        row("What?", contexts=(SECRETS, VOLUMES), answerability="UNDERSPECIFIED"),
        row("Who?", contexts=(), answerability="UNANSWERABLE"),
    )
    conversations, corpus = read_conversations(path)
    assert corpus == [VOLUMES["text"], SECRETS["text"]], "equal passages are one"
    assert [conversation.relevant for conversation in conversations] == [frozenset({0})]


def test_recall_is_the_share_of_relevant_passages_among_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followup_quality, "K", 1)
    encoder = StubEncoder()
    passages = encoder.encode([VOLUMES["text"], SECRETS["text"]])
    question = (Message("user", "resize a volume"),)
    asked = [Conversation(question, frozenset(relevant), True) for relevant in ({0}, {1}, {0, 1})]
    assert recalls(asked, passages, encoder, SYSTEMS[LAST]) == [1.0, 0.0, 0.5]


def test_the_whole_history_is_searched_with_the_newest_turn_first() -> None:
    messages = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    assert SYSTEMS[HISTORY](messages) == "three\ntwo\none"


def test_the_gain_of_the_rules_is_paired_and_a_first_turn_has_none(tmp_path: Path) -> None:
    fillers = tuple({"document_id": f"f{number}", "text": f"is it {number}"} for number in range(6))
    path = write(
        tmp_path / "rows.jsonl.gz",
        row("How do I resize a volume with extend?", "By command.", "Is it safe?", contexts=(VOLUMES,)),
        row("How are secrets set?", contexts=(SECRETS,)),
        row("What?", contexts=fillers, answerability="UNDERSPECIFIED"),
    )
    figures = {(one.case, one.system): one for one in measure(*read_conversations(path), StubEncoder())}
    assert figures["first turn", GAIN].value == 0.0
    assert (figures["follow-up", LAST].value, figures["follow-up", RULES].value) == (0.0, 1.0)
    assert figures["follow-up", GAIN].value == 1.0
    assert figures["all", GAIN].num_questions == 2
    halves = [case for case, system in figures if case.startswith("follow-up, ") and system == GAIN]
    assert len(halves) == 1, "one conversation lies in one half"


def test_the_generator_is_measured_beside_the_rules_where_it_has_rewritten(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl.gz",
        row("How do I begin?", "By command.", "Is it safe?", contexts=(VOLUMES,)),
        *(row(f"is it {number}", contexts=({"document_id": "f", "text": f"is it {number}"},)) for number in range(6)),
    )
    conversations, corpus = read_conversations(path)
    rewritten = {one.messages: one.messages[-1].content for one in conversations}
    rewritten[conversations[0].messages] = "resize a volume with extend"
    figures = {(one.case, one.system): one for one in measure(conversations, corpus, StubEncoder(), rewritten)}
    assert figures["follow-up", LAST].value == 0.0
    assert figures["follow-up", GENERATOR].value == figures["follow-up", GENERATOR_GAIN].value == 1.0
    assert figures["first turn", GENERATOR_GAIN].value == 0.0
    without = measure(conversations, corpus, StubEncoder())
    assert not {GENERATOR, GENERATOR_GAIN} & {one.system for one in without}


def test_the_interval_holds_the_mean_and_narrows_with_more_values() -> None:
    mean, low, high = mean_interval([0.0, 1.0] * 20)
    assert mean == 0.5 and low < 0.5 < high
    _, narrow_low, narrow_high = mean_interval([0.0, 1.0] * 2000)
    assert low < narrow_low and narrow_high < high
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_a_run_without_the_data_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "absent.gz")]) == 0
    assert "skipped: " in (printed := capsys.readouterr().out)
    assert "absent.gz is not there; name the file with --data." in printed
