"""A record's fields to a typed row, or the sentence that says what is wrong with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any, get_args

from engine.tuning.data.limits import DataLimits
from engine.tuning.data.records import Record
from engine.tuning.data.rows import (
    KIND_FIELDS,
    OPTIONAL_FIELDS,
    ChatRow,
    CompletionRow,
    Kind,
    LabelRow,
    QuestionRow,
    Row,
)
from engine.tuning.data.source import encoding_fault
from engine.values import Message, Role


class _Wrong(Exception):
    """What is wrong with a row, and how to mend it."""


def kinds_of(record: Record) -> list[Kind]:
    """Every kind whose fields the record has."""
    return [kind for kind, fields in KIND_FIELDS.items() if all(name in record.fields for name in fields)]


def parse_row(record: Record, kind: Kind, limits: DataLimits) -> Row | str:
    """The row, or why there is none."""
    missing = [name for name in KIND_FIELDS[kind] if name not in record.fields]
    if missing:
        has = ", ".join(repr(name[:40]) for name in list(record.fields)[:8]) or "nothing"
        return f"lacks {' and '.join(map(repr, missing))}, which the file's other rows have; it has {has}"
    try:
        return _PARSERS[kind](record, limits)
    except _Wrong as wrong:
        return str(wrong)


def ignored_fields(record: Record, kind: Kind) -> set[str]:
    """Fields that no row of this kind reads."""
    return set(record.fields) - set(KIND_FIELDS[kind]) - set(OPTIONAL_FIELDS[kind])


def _label_row(record: Record, limits: DataLimits) -> LabelRow:
    text = _text(record.fields["text"], "text", limits)
    return LabelRow(record.line, text, _label(record.fields["label"], limits), _group(record, limits))


def _completion_row(record: Record, limits: DataLimits) -> CompletionRow:
    prompt = _text(record.fields["prompt"], "prompt", limits)
    completion = _text(record.fields["completion"], "completion", limits)
    return CompletionRow(record.line, prompt, completion, _group(record, limits))


def _chat_row(record: Record, limits: DataLimits) -> ChatRow:
    messages = record.fields["messages"]
    if not isinstance(messages, list):
        raise _Wrong(f"'messages' is {_shown(messages)}; write a list of {{'role', 'content'}}")
    if len(messages) > limits.max_messages:
        raise _Wrong(f"'messages' has {len(messages)} turns, allowed are {limits.max_messages}; cut the conversation")
    parsed = tuple(_message(message, place, limits) for place, message in enumerate(messages))
    turns = [message.role for message in parsed]
    spoken = turns[1:] if turns[:1] == ["system"] else turns
    if len(spoken) < 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise _Wrong(
            f"the roles are {', '.join(turns) or 'none'}; write a system message or none, then user and assistant in "
            "turn, and let the assistant have the last word"
        )
    return ChatRow(record.line, parsed, _group(record, limits))


def _message(message: Any, place: int, limits: DataLimits) -> Message:
    name = f"messages[{place}]"
    if not isinstance(message, dict):
        raise _Wrong(f"{name!r} is {_shown(message)}; write {{'role', 'content'}}")
    others = sorted(set(message) - {"role", "content"})
    if others:
        raise _Wrong(f"{name!r} has {others[0][:40]!r}, which is not trained on; keep 'role' and 'content' only")
    role: Any = message.get("role")
    if role not in get_args(Role):
        raise _Wrong(f"'{name}.role' is {_shown(role)}; allowed: {', '.join(get_args(Role))}")
    return Message(role, _text(message.get("content"), f"{name}.content", limits))


def _question_row(record: Record, limits: DataLimits) -> QuestionRow:
    fields = record.fields
    question = _text(fields["question"], "question", limits)
    answers = fields["answers"]
    if not isinstance(answers, list):
        raise _Wrong(f"'answers' is {_shown(answers)}; write a list of texts, every one of them right: [\"...\"]")
    if len(answers) > limits.max_answers:
        raise _Wrong(f"'answers' has {len(answers)} texts, allowed are {limits.max_answers}; keep the ones that differ")
    texts = tuple(_text(answer, f"answers[{place}]", limits) for place, answer in enumerate(answers))
    is_unanswerable = fields.get("unanswerable", False)
    if not isinstance(is_unanswerable, bool):
        raise _Wrong(f"'unanswerable' is {_shown(is_unanswerable)}; allowed: true, false")
    if is_unanswerable and texts:
        raise _Wrong("is 'unanswerable' and has 'answers'; keep one of the two")
    if not texts and not is_unanswerable:
        raise _Wrong(
            "'answers' is empty; write at least one, or 'unanswerable': true where the context holds no answer"
        )
    context, document = (_optional_text(fields.get(name), name, limits) for name in ("context", "document"))
    return QuestionRow(record.line, question, texts, context, document, _group(record, limits))


def _text(value: Any, name: str, limits: DataLimits) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{name!r} is {_shown(value)}; write a text in quotes")
    if not value.strip():
        raise _Wrong(f"{name!r} is empty; write a text, or leave the row out")
    if len(value) > limits.max_text_chars:
        raise _Wrong(f"{name!r} has {len(value)} characters, allowed are {limits.max_text_chars}; shorten it")
    # JSON spells half a surrogate pair with an escape, which no check of the file's bytes can see.
    if fault := encoding_fault(value):
        raise _Wrong(f"{name!r} {fault}")
    return value


def _optional_text(value: Any, name: str, limits: DataLimits) -> str | None:
    return None if value is None else _text(value, name, limits)


def _group(record: Record, limits: DataLimits) -> str | None:
    value = record.fields.get("group")
    return (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else _optional_text(value, "group", limits)
    )


def _label(value: Any, limits: DataLimits) -> str:
    """Numbers are names too; white space around a name is not part of it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    label = _text(value, "label", limits).strip()
    if len(label) > limits.max_label_chars:
        raise _Wrong(
            f"'label' has {len(label)} characters, allowed are {limits.max_label_chars}; a label is a short name. "
            "Use 'prompt' and 'completion' for free text"
        )
    bad = next((character for character in label if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")), None)
    if bad is not None:
        raise _Wrong(f"'label' {label!a} holds U+{ord(bad):04X}, which nobody can see; use visible characters only")
    return label


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_PARSERS: dict[Kind, Callable[[Record, DataLimits], Row]] = {
    "label": _label_row,
    "completion": _completion_row,
    "messages": _chat_row,
    "question": _question_row,
}
