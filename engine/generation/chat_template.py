"""Messages to token ids through the tokenizer's chat template, with no way for a content to write control tokens.

A content that holds the literal of an added token (`<|im_end|>`) is spelled with ordinary tokens, nothing is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import jinja2
from transformers import PreTrainedTokenizerBase

from engine.errors import InvalidRequest, ModelSourceError
from engine.values import Message

PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class ChatTemplate:
    """Encodes conversations. Keeps no state between calls, so several threads may share one.

    Raises: ModelSourceError when the tokenizer has no chat template or no Rust backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelSourceError("the model's tokenizer has no chat template. Use an instruction-tuned model.")
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelSourceError("the model's tokenizer has no tokenizer.json. Save it in the fast format first.")
        self._tokenizer = tokenizer
        self._source: str = tokenizer.get_chat_template()
        self._backend = tokenizer.backend_tokenizer
        added: dict[int, str] = {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}
        # Whitespace runs are added tokens in some vocabularies; in a content they are what they look like.
        self._id_of = {content: i for i, content in added.items() if not content.isspace()}
        self._control_ids = frozenset(self._id_of.values())
        longest_first = sorted(self._id_of, key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @property
    def accepts_system(self) -> bool:
        """Whether a conversation may begin with a system message."""
        try:
            self._render([Message("system", "s"), Message("user", "u")])
        except InvalidRequest:
            return False
        return True

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `messages` with the template's generation prompt at the end.

        Without added-token literals in the contents the ids are those of `tokenizer.apply_chat_template`.
        Raises: InvalidRequest with the template's own words when it refuses the roles or their order, or when a
            content cannot be encoded in UTF-8.
        """
        contents = "".join(message.content for message in messages)
        try:
            contents.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"messages hold {contents[error.start]!r}, half of a surrogate pair. Send complete characters.",
                param="messages",
            ) from None
        literals = dict.fromkeys(self._literal.findall(contents))
        stand_ins = dict(zip(literals, _unused_characters(contents + self._source), strict=False))
        rendered = self._render(
            [Message(m.role, self._literal.sub(lambda match: stand_ins[match.group()], m.content)) for m in messages]
        )
        if not stand_ins:
            ids: list[int] = self._backend.encode(rendered, add_special_tokens=False).ids
            # A normaliser may form a literal out of other characters (full-width brackets); the slow way cannot.
            if sum(i in self._control_ids for i in ids) == len(self._literal.findall(rendered)):
                return ids
        return self._encode_in_pieces(rendered, {stand_in: literal for literal, stand_in in stand_ins.items()})

    def text_tokens(self, text: str) -> list[int]:
        """Tokens of `text` on its own, literals of added tokens spelled out."""
        return self._encode_text(text)

    def _render(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {' '.join(str(error).split())}",
                param="messages",
            ) from None
        return rendered

    def _encode_in_pieces(self, rendered: str, literal_of: dict[str, str]) -> list[int]:
        """Encode by hand: literals still visible are the template's own, the rest is text with stand-ins undone."""
        restore = str.maketrans(literal_of)
        ids: list[int] = []
        position = 0
        for match in self._literal.finditer(rendered):
            ids += self._encode_text(rendered[position : match.start()].translate(restore))
            ids.append(self._id_of[match.group()])
            position = match.end()
        return ids + self._encode_text(rendered[position:].translate(restore))

    def _encode_text(self, text: str) -> list[int]:
        """Run the tokenizer's stages without its added tokens (`split_special_tokens` skips the special ones only)."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits = (
            [text] if backend.pre_tokenizer is None else [s for s, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        )
        return list(chain.from_iterable(self._encode_split(split) for split in splits))

    def _encode_split(self, split: str) -> Iterable[int]:
        ids = [token.id for token in self._backend.model.tokenize(split)]
        if self._control_ids.isdisjoint(ids):
            return ids
        # A unigram vocabulary holds its control tokens as ordinary pieces; single characters never are one.
        return [token.id for character in split for token in self._backend.model.tokenize(character)]


def _unused_characters(text: str) -> Iterator[str]:
    """Private-use characters that do not occur in `text`."""
    present = set(text)
    return (chr(code) for code in chain(*PRIVATE_USE) if chr(code) not in present)
