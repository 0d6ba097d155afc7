"""From a request to the tokens that the model reads: history kept, passages fitted, control tokens neutralised.

Layout, stable text first so that equal beginnings can be cached:
system prompt, earlier turns, then in the last user message: instruction, passages, question.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from engine.errors import InvalidRequest, PromptTooLong
from engine.generation.chat_template import ChatTemplate
from engine.values import GenerationRequest, Message, Passage, PromptReport

# Of nine wordings tried with SmolLM2-135M on SQuAD (four passages each) this was among the best: a small model
# follows the order right in front of the question, and refuses at random where refusing is all it reads there.
INSTRUCTION = (
    "Answer the question with the help of the passages. If they do not hold the answer, say that you do not know."
)
QUESTION = "Answer this question briefly from the passages above: "
MIN_CUT_TOKENS = 32

# Invisible characters that reorder or hide text in a document. ZWJ and ZWNJ stay: Persian, Hindi and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u200b\u2060-\u2064\ufeff\u180e"  # zero-width
    "\U000e0000-\U000e007f"  # tags: an invisible copy of ASCII
    "\ud800-\udfff]"  # halves of surrogate pairs
)
# Where a passage may end: before white space, and after a clause in scripts that do not put any.
_WORD_END = re.compile(r"(?<=\S)(?=\s)|(?<=[。，、；：！？」』）])(?=[^\s\ufe00-\ufe0f\u200d\u3099\u309a])")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, and what became of the request's passages."""

    token_ids: list[int]
    report: PromptReport


class PromptBuilder:
    """Builds prompts for one model. Holds no state between calls; several threads may share one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_model_len: int, system_prompt: str) -> None:
        """`max_model_len` counts prompt and answer, in tokens; `system_prompt` is for conversations without one.

        Raises: ModelSourceError when the tokenizer has no chat template.
        """
        self._template = ChatTemplate(tokenizer)
        self._max_model_len = max_model_len
        self._system_prompt = system_prompt
        self._accepts_system = self._template.accepts_system

    def build(self, request: GenerationRequest, *, system_prompt: str = "") -> Prompt:
        """Assemble the prompt so that it and `max_tokens` fit `max_model_len`.

        `system_prompt`, unless empty, stands for the builder's own in a conversation that has none.

        Passages are numbered from 1 and fill what the messages leave, in the given order. The first that does not fit
        is cut at a word's end if at least MIN_CUT_TOKENS of it fit, and the rest is left out. `report.passages` are
        those shown: `text == document_text[start:end]` holds for cut ones too (hidden control characters, which the
        model does not get to see, are still in it).

        Raises:
            PromptTooLong: the messages alone do not fit; history is never dropped.
            InvalidRequest: no messages, no user message to put passages into, or refused by the chat template.
        """
        if not request.messages:
            raise InvalidRequest("messages is empty; send at least one message.", param="messages")
        messages = self._with_system_prompt(request.messages, system_prompt or self._system_prompt)
        limit = self._max_model_len - request.sampling.max_tokens
        prompt = self._encode(messages, request.passages)
        if len(prompt.token_ids) <= limit:
            return prompt
        bare = self._encode(messages, ())
        if len(bare.token_ids) > limit:
            raise PromptTooLong(len(bare.token_ids), request.sampling.max_tokens, self._max_model_len)
        return self._fit(messages, request.passages, limit)

    def passage_tokens(self, passages: Sequence[Passage]) -> list[list[int]]:
        """The tokens of each passage's text as the model reads it, but for where it touches other text."""
        return [self._template.text_tokens(_visible(passage.text)) for passage in passages]

    def text_tokens(self, text: str) -> list[int]:
        """Text as it stands in an answer; control tokens spelt out in it are text."""
        return self._template.text_tokens(text)

    def _with_system_prompt(self, messages: tuple[Message, ...], system_prompt: str) -> tuple[Message, ...]:
        if not system_prompt or any(message.role == "system" for message in messages):
            return messages
        if self._accepts_system:
            return (Message("system", system_prompt), *messages)
        if messages[0].role != "user":
            return messages
        # Some templates (Mistral 7B v0.1) have no system role; the text itself works in front of the first turn.
        return (Message("user", f"{system_prompt}\n\n{messages[0].content}"), *messages[1:])

    def _fit(self, messages: tuple[Message, ...], passages: Sequence[Passage], limit: int) -> Prompt:
        """The longest prompt within `limit` tokens; the messages alone are known to fit, all passages not to."""
        whole = bisect_right(
            range(1, len(passages)),
            limit,
            key=lambda count: len(self._encode(messages, passages[:count]).token_ids),
        )
        shown, next_passage = list(passages[:whole]), passages[whole]
        ends = [match.start() for match in _WORD_END.finditer(next_passage.text)]
        cuts = [replace(next_passage, text=next_passage.text[:end], end=next_passage.start + end) for end in ends]
        num_fitting = bisect_right(cuts, limit, key=lambda cut: len(self._encode(messages, [*shown, cut]).token_ids))
        if num_fitting:
            cut = cuts[num_fitting - 1]
            if len(self._template.text_tokens(_visible(cut.text))) >= MIN_CUT_TOKENS:
                shown.append(cut)
        return self._encode(messages, shown)

    def _encode(self, messages: tuple[Message, ...], passages: Sequence[Passage]) -> Prompt:
        if passages:
            last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
            if last is None:
                raise InvalidRequest("messages hold no user message to answer from passages.", param="messages")
            question = Message("user", _with_passages(messages[last].content, passages))
            messages = (*messages[:last], question, *messages[last + 1 :])
        token_ids = self._template.encode(messages)
        return Prompt(token_ids, PromptReport(len(token_ids), tuple(passages)))


def _with_passages(question: str, passages: Sequence[Passage]) -> str:
    blocks = [f"[{number}] {_label(passage)}\n{_visible(passage.text)}" for number, passage in enumerate(passages, 1)]
    return "\n\n".join([INSTRUCTION, *blocks, QUESTION + question])


def _label(passage: Passage) -> str:
    """`title > heading` on one line, whichever of them there are; most pages repeat their title as first heading."""
    title, heading = (" ".join(_visible(part).split()) for part in (passage.title, passage.heading))
    if heading == title or heading.startswith(f"{title} > "):
        return heading
    return " > ".join(part for part in (title, heading) if part)


def _visible(text: str) -> str:
    return _HIDDEN.sub("", text)
