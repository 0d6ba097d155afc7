"""Make a follow-up question searchable on its own: what it leaves unsaid is taken from the turns before it.

The rules, made for English; no model, and the same text gives the same query:
1. A question stands alone unless it refers back ("does it ...", "those", "the other one"), opens like the second half
   of a sentence ("and ...", "what about ..."), is a fragment without a verb of asking, or has next to no content words.
2. To one that does not, the content words of earlier user turns are added: most recent turn first, back to the turn
   that stands alone, at most MAX_USER_WORDS. Then names from the last answer, at most MAX_ANSWER_WORDS.
3. In other languages only a very short question is changed: the user turn before it is put in front.

System messages are never read, so that their text reaches no search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from engine.values import Message

MAX_USER_WORDS = 12
MAX_ANSWER_WORDS = 4
# Fewer content words name too little to be searched for alone.
MIN_CONTENT_WORDS = 3
MAX_FRAGMENT_WORDS = 4
# A reference with so many content words before it most likely means one of them.
MIN_ANTECEDENT_WORDS = 3
MAX_FOREIGN_WORDS = 3
MIN_ENGLISH_SHARE = 0.1
# What is looked at of a conversation and of a turn: the time is bounded whatever a client sends.
MAX_TURNS = 8
MAX_TURN_CHARS = 1000
MAX_WORD_CHARS = 40

_REFERENCES = frozenset(
    """
    it its itself they them their theirs themselves he him his he's she her hers she's it's they're that's this that
    these those there here such same one ones other others another else both former latter either neither above
    """.split()
)
# "any that fits", "the site that hosts": after other words `that` opens a clause.
_BEFORE_POINTING_THAT = frozenset("about after and at before by for from if in like of on than to with".split())
_BEING = frozenset("is are was were be".split())
_ASKING = frozenset(
    """
    what how why when where who whom whose which is are was were am do does did can could will would should shall may
    might has have had
    """.split()
)
_OPENER = re.compile(
    r"\W*(?:and|but|or|so|also|then|plus|any|more|no|yes|ok|okay|(?:what|how) about|what (?:if|else)|how come|why|"
    r"i meant?|which (?:one|of))\b",
    re.IGNORECASE,
)
# Shared by few other languages, unlike "is", "in", "of", "an" or "was".
_ENGLISH = frozenset(
    """
    the and what how why when where which who does did can could would should with are this that these those my your
    you they from about there have has please tell it's what's don't
    """.split()
)
_STOP_WORDS = (
    _REFERENCES
    | _BEING
    | _ASKING
    | _ENGLISH
    | frozenset(
        """
        a able about actually after again all also always an any anything as because been before being below
        between but can't cannot couldn't couple describe didn't doesn't doing down during each etc exactly
        example explain few find for further get getting give go got having hello help hey hi i i'd i'll i'm
        i've if in info information into isn't just know let like look lot lots many may maybe me mean meant
        more most much must myself need no nor not now of off oh ok okay on once only or our ours out over own
        please possible question really regarding right said say see so some sorry still sure than thank
        thanks the then thing things think through to too under until up us use used using very want wanted
        wasn't way we we're well were weren't while will within without won't wonder wow yes yet you're you've
        yours
        """.split()
    )
)
_EDGES = ".,!?;:\"'()[]{}<>…“”‘’«»„¿¡*_`~|–—/\\-#。，！？、；：「」（）"
_SENTENCE_END = (".", "!", "?", ":")
# Written without blanks between words: Thai to Myanmar and Khmer, kana, Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def standalone_query(messages: Sequence[Message]) -> str:
    """The text to search for: the last user message, unchanged where it stands alone, else with words of its history.

    Takes well below a millisecond, at worst about two. At most about 1,000 characters are added to the message.
    Raises: ValueError when there is no user message.
    """
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise ValueError("messages hold no user message; the question to search for is the last of them")
    question = messages[last].content
    before = messages[max(0, last - 2 * MAX_TURNS) : last]
    turns = [message.content[:MAX_TURN_CHARS] for message in reversed(before) if message.role == "user"][:MAX_TURNS]
    turns = [turn for turn in turns if turn.strip()]
    if not turns:
        return question
    looked_at = question[:MAX_TURN_CHARS]
    if not _is_english(looked_at) and not _is_english(" ".join(turns)):
        return f"{turns[0].strip()} {question}" if _num_words(looked_at) <= MAX_FOREIGN_WORDS else question
    if not is_follow_up(looked_at):
        return question
    answer = next((message.content for message in reversed(before) if message.role == "assistant"), "")
    added = _Added(looked_at)
    for turn in turns:
        added.take(_content_words(turn), MAX_USER_WORDS)
        if len(added.words) >= MAX_USER_WORDS or not is_follow_up(turn):
            break
    added.take(_names(answer[:MAX_TURN_CHARS]), len(added.words) + MAX_ANSWER_WORDS)
    return " ".join([question.strip(), *added.words])


def is_follow_up(question: str) -> bool:
    """Whether an English question leaves unsaid what it is about, going by its words alone."""
    words = [_plain(word) for word in _words(question)]
    if _refers_back(words) or _OPENER.match(question):
        return True
    if len(words) <= MAX_FRAGMENT_WORDS and not _ASKING.intersection(words[:1]):
        return True
    return sum(word not in _STOP_WORDS for word in words) < MIN_CONTENT_WORDS


class _Added:
    """Words to add to a question: each once, and none that the question has."""

    def __init__(self, question: str) -> None:
        self.words: list[str] = []
        self._seen = {_stem(word) for word in _words(question)}

    def take(self, words: Iterable[str], limit: int) -> None:
        """Add words until there are `limit` in all."""
        for word in words:
            if len(self.words) >= limit:
                return
            stem = _stem(word)
            if stem not in self._seen:
                self._seen.add(stem)
                self.words.append(word)


def _refers_back(words: Sequence[str]) -> bool:
    """Whether a pronoun or its like points out of the question. `words` are plain."""
    num_content = 0
    for word, previous, following in zip(words, ["", *words], [*words[1:], ""], strict=False):
        if word in _REFERENCES:
            is_there_is = word == "there" and (following in _BEING or previous in _BEING)
            is_clause = word == "that" and previous not in _BEFORE_POINTING_THAT | _ASKING | {""}
            if not is_there_is and not is_clause:
                return True
        num_content += word not in _STOP_WORDS
        if num_content >= MIN_ANTECEDENT_WORDS:
            return False
    return False


def _content_words(text: str) -> list[str]:
    return [word for word in _words(text) if _plain(word) not in _STOP_WORDS]


def _names(answer: str) -> list[str]:
    """Words with a capital letter or a digit inside a sentence: what an answer named, without its prose."""
    names, starts_sentence = [], True
    for raw in answer.split():
        word = raw.strip(_EDGES)
        if word and not starts_sentence and len(word) <= MAX_WORD_CHARS and (word[0].isupper() or word[0].isdigit()):
            names.append(word)
        starts_sentence = raw.endswith(_SENTENCE_END)
    return [name for name in names if _plain(name) not in _STOP_WORDS]


def _words(text: str) -> list[str]:
    """Words between blanks without the punctuation around them; addresses and the like are left out."""
    stripped = (raw.strip(_EDGES) for raw in text.split())
    return [word for word in stripped if 0 < len(word) <= MAX_WORD_CHARS]


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


def _stem(word: str) -> str:
    """One form for a word, its plural and its genitive."""
    plain = _plain(word).removesuffix("'s")
    return plain[:-1] if len(plain) > 3 and plain.endswith("s") and not plain.endswith("ss") else plain


def _is_english(text: str) -> bool:
    words = [_plain(word) for word in _words(text)]
    return sum(word in _ENGLISH for word in words) >= MIN_ENGLISH_SHARE * max(len(words), 1)


def _num_words(text: str) -> int:
    """Words between blanks; two characters count as a word where none are put."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_words(_UNSPACED.sub(" ", text))) + (unspaced + 1) // 2
