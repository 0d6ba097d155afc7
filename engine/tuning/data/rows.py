"""One typed row for each kind of example, and the task that each kind implies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from engine.values import Message

Kind = Literal["label", "completion", "messages", "question"]
Task = Literal["classify", "qa", "chat"]


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A text and the label it bears. `line` is that of the file, counted from 1; rows of one `group` stay together."""

    line: int
    text: str
    label: str
    group: str | None = None

    @property
    def input_text(self) -> str:
        """What makes two rows alike: what the model is asked, without what all rows are told."""
        return self.text

    @property
    def target(self) -> str:
        """What the model is to say."""
        return self.label

    def content(self) -> dict[str, Any]:
        """The row as JSON, without its place in the file."""
        return {"text": self.text, "label": self.label}


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt and its completion, both as they are."""

    line: int
    prompt: str
    completion: str
    group: str | None = None

    @property
    def input_text(self) -> str:
        """See LabelRow."""
        return self.prompt

    @property
    def target(self) -> str:
        """See LabelRow."""
        return self.completion

    def content(self) -> dict[str, Any]:
        """See LabelRow."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation: a system message or none, then user and assistant in turn; the last one is the assistant's."""

    line: int
    messages: tuple[Message, ...]
    group: str | None = None

    @property
    def input_text(self) -> str:
        """See LabelRow. The turns before the last one; the system message is no part of it."""
        return "\n".join(message.content for message in self.messages[:-1] if message.role != "system")

    @property
    def target(self) -> str:
        """See LabelRow."""
        return self.messages[-1].content

    def content(self) -> dict[str, Any]:
        """See LabelRow."""
        return {"messages": [{"role": message.role, "content": message.content} for message in self.messages]}


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question, every answer that is right, and where they are from.

    `answers` are empty exactly where the example teaches that the context holds none. `context` is the text that the
    answer is read from, `document` the id of a document in the knowledge base; both may be absent.
    """

    line: int
    question: str
    answers: tuple[str, ...]
    context: str | None = None
    document: str | None = None
    group: str | None = None

    @property
    def input_text(self) -> str:
        """See LabelRow. The context is no part of it: questions about one paragraph are not alike for that."""
        return self.question

    @property
    def target(self) -> str:
        """See LabelRow. The first answer; empty where there is none."""
        return self.answers[0] if self.answers else ""

    def content(self) -> dict[str, Any]:
        """See LabelRow."""
        optional = {"context": self.context, "document": self.document}
        return {"question": self.question, "answers": list(self.answers)} | {
            name: value for name, value in optional.items() if value is not None
        }


Row = LabelRow | CompletionRow | ChatRow | QuestionRow

KIND_TASKS: dict[Kind, Task] = {"label": "classify", "completion": "chat", "messages": "chat", "question": "qa"}
# Fields that a row of each kind must have.
KIND_FIELDS: dict[Kind, tuple[str, ...]] = {
    "label": ("text", "label"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "question": ("question", "answers"),
}
# Fields that it may have besides; others are left alone and named.
OPTIONAL_FIELDS: dict[Kind, tuple[str, ...]] = {
    "label": ("group",),
    "completion": ("group",),
    "messages": ("group",),
    "question": ("group", "context", "document", "unanswerable"),
}
