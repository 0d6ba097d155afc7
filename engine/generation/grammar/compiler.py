"""Compiling grammars beside the engine: in threads of their own, each content once, within caps."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from engine.errors import ComponentUnavailable, InvalidGrammar, Overloaded, SwitchyardError
from engine.generation.grammar.matcher import Matcher
from engine.generation.grammar.place import failing_place
from engine.generation.grammar.source import PARAMS, from_schema, library_grammar
from engine.values import Grammar

_log = logging.getLogger(__name__)

MAX_COMPILE_S = 2.0
MAX_WAITING = 32
MAX_CACHED = 128
_NUM_THREADS = 2


class Compiled:
    """A grammar that has been found sound. Several threads may share one."""

    def __init__(self, prototype: LLMatcher) -> None:
        self._prototype = prototype

    def start(self) -> Matcher:
        """A matcher at the beginning of an answer; takes microseconds."""
        return Matcher(self._prototype.deep_copy())


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps the latest. Any thread may call it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Collection[int],
        vocab_size: int,
        *,
        max_waiting: int = MAX_WAITING,
        max_cached: int = MAX_CACHED,
        build: Callable[[LLTokenizer, str], LLMatcher] | None = None,
    ) -> None:
        """`eos_ids` may end an answer; `vocab_size` is the width of the logits. `build` replaces the library's part."""
        self.mask_size = max(vocab_size, len(tokenizer))
        self._tokenizer = tokenizer
        self._eos_ids = sorted(eos_ids)
        self._max_waiting = max_waiting
        self._max_cached = max_cached
        self._build = build or _build
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._cache: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()  # the latest used last
        self._num_waiting = 0
        self._vocabulary_lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> Future[Compiled]:
        """The compiled grammar, at once where it is known. Its error is an InvalidGrammar.

        Raises: InvalidGrammar where a cap shows that without compiling, Overloaded when too many wait.
        """
        with self._lock:
            known = self._cache.get(grammar)
            if known is not None:
                self._cache.move_to_end(grammar)
                return known
        text = library_grammar(grammar)
        with self._lock:
            if grammar in self._cache:  # another thread was faster
                return self._cache[grammar]
            if self._num_waiting >= self._max_waiting:
                raise Overloaded("the queue of grammars to compile", self._max_waiting, "the generator's replicas")
            self._num_waiting += 1
            future = self._pool.submit(self._compile, grammar, text)
            self._cache[grammar] = future
            self._trim()
        future.add_done_callback(lambda _: self._count_out())
        return future

    def close(self) -> None:
        """Drop what waits; calling it again does nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _trim(self) -> None:
        """Forget the longest unused, except what is being compiled."""
        for grammar in [grammar for grammar, future in self._cache.items() if future.done()]:
            if len(self._cache) <= self._max_cached:
                return
            del self._cache[grammar]

    def _count_out(self) -> None:
        with self._lock:
            self._num_waiting -= 1

    def _compile(self, grammar: Grammar, text: str) -> Compiled:
        name, param = _NAMES[grammar.kind], PARAMS[grammar.kind]
        matcher = self._build(self._shared_vocabulary(), text)
        if matcher.is_error():
            raise InvalidGrammar(f"the {name} {self._reason(grammar, matcher.get_error())}", param=param)
        # The first mask shows what compiling leaves open: that the grammar stays within limits and some text matches.
        mask = matcher.compute_bitmask()
        if matcher.is_error() and _NO_EXTENSION not in matcher.get_error():
            raise InvalidGrammar(f"the {name} {_too_complex(matcher.get_error())}", param=param)
        if matcher.is_error() or not np.frombuffer(mask, np.uint8).any():
            raise InvalidGrammar(f"no text matches the {name}.", param=param)
        return Compiled(matcher)

    def _reason(self, grammar: Grammar, message: str) -> str:
        if "too big" in message or "too large" in message or "too many" in message or "recursion limit" in message:
            return _too_complex(message)
        place = ""
        if grammar.kind == "json_schema":
            place = failing_place(
                json.loads(grammar.source),
                message,
                lambda schema: self._build(self._shared_vocabulary(), from_schema(json.dumps(schema))).get_error(),
            )
        return f"cannot be used{f' at {place}' if place else ''}: {_one_line(message)}."

    def _shared_vocabulary(self) -> LLTokenizer:
        """The library's view of the tokenizer; takes a good part of a second, so it is made when first needed."""
        with self._vocabulary_lock:
            if self._vocabulary is None:
                tokenizer: Any = self._tokenizer
                self._vocabulary = from_tokenizer(tokenizer, n_vocab=self.mask_size, eos_token=self._eos_ids)
            return self._vocabulary


_NAMES = {"json_schema": "schema", "regex": "regular expression", "choice": "choice"}
# How the library says that nothing matches.
_NO_EXTENSION = "NoExtension"
# Parts of the library's messages that users cannot do anything with, and what they read instead.
_HINTS = (
    ("<non-verbose/>", ""),
    (
        "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf",
        "oneOf whose alternatives overlap cannot be enforced; use anyOf, or make them differ in a constant",
    ),
)


def compile_error(error: BaseException) -> SwitchyardError:
    """What a request hears whose grammar was not compiled."""
    if isinstance(error, SwitchyardError):
        return error
    if isinstance(error, CancelledError):
        return ComponentUnavailable("generator", "it is shutting down")
    _log.error("a grammar was not compiled", exc_info=error)
    return InvalidGrammar(f"the grammar cannot be compiled for this model ({type(error).__name__}).")


def too_slow(grammar: Grammar) -> InvalidGrammar:
    """The error of a grammar that was not compiled in time."""
    return InvalidGrammar(
        f"the {_NAMES[grammar.kind]} was not compiled within {MAX_COMPILE_S:g} s; simplify it.",
        param=PARAMS[grammar.kind],
    )


def became_too_complex(message: str) -> InvalidGrammar:
    """The error of an answer whose grammar exceeded a limit on the way."""
    return InvalidGrammar(f"the grammar {_too_complex(message)}")


def _build(vocabulary: LLTokenizer, text: str) -> LLMatcher:
    # Tighter than the library's defaults, which let one unlucky step of one request take seconds from all others.
    limits = LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=20_000,
        step_max_items=10_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )
    return LLMatcher(vocabulary, text, log_level=0, limits=limits)


def _too_complex(message: str) -> str:
    return f"is too complex to be applied ({_one_line(message)}); simplify it."


def _one_line(message: str) -> str:
    for theirs, ours in _HINTS:
        message = message.replace(theirs, ours)
    return " ".join(message.split())
