"""The encoders of a retriever's collections: each is loaded once, when the first collection needs it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import ModelSourceError, SwitchyardError
from engine.retrieval.encoding.protocol import EncoderLike, Vectors
from engine.retrieval.index.background import background_questions

# Between two tries to load an encoder in the background.
_RETRY_S = 30

_log = logging.getLogger(__name__)
LoadEncoder = Callable[[str], EncoderLike]


class Encoders:
    """By digest, so that two names of the same weights are one encoder. Thread-safe."""

    def __init__(self, default: EncoderLike, model: str, load: LoadEncoder | None = None) -> None:
        """
        Args:
            default: the encoder of new collections, which `model` names as `retriever.model` does.
            load: of any other; None where there can be none.
        """
        self.default = default
        self.model = model
        self._load = load
        self._by_digest = {default.identity.digest: default}
        self._by_model = {model: default}
        self._questions: dict[str, Vectors] = {}
        self._loading = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failed_at: dict[str, float] = {}
        self.questions(default)

    def held(self, digest: str) -> EncoderLike | None:
        """The encoder of this digest where it is loaded."""
        return self._by_digest.get(digest)

    def named(self, model: str) -> EncoderLike:
        """The encoder that `model` names now. Raises: ModelSourceError where it cannot be loaded."""
        with self._loading:
            if model not in self._by_model:
                if self._load is None:
                    raise ModelSourceError(f"encoder {model} cannot be loaded here: {self.model} is the only one.")
                _log.info("loading encoder %s", model)
                found = self._load(model)
                self._by_model[model] = self._by_digest.setdefault(found.identity.digest, found)
            return self._by_model[model]

    def of(self, collection: str, encoder: Mapping[str, Any], model: str | None) -> EncoderLike:
        """The encoder that made a generation, by its recorded identity and model.

        Raises: ModelSourceError that names both digests where the model holds another one now, or cannot be had.
        """
        held = self._by_digest.get(encoder["digest"])
        if held is not None:
            return held
        made = f"collection {collection!r} was embedded by {encoder['name']} (digest {encoder['digest'][:12]})"
        ours = f"retriever.model is {self.default.identity.name} (digest {self.default.identity.digest[:12]})"
        if model is None:
            raise ModelSourceError(
                f"{made}, {ours}, and where that one came from is not recorded. Set retriever.model back and start "
                f"once, which records it; then change it and run: switchyard generations build {collection}"
            )
        try:
            found = self.named(model)
        except SwitchyardError as error:
            raise ModelSourceError(
                f"{made}, {ours}. The collection's own encoder is needed until another generation of it is built, and "
                f"cannot be loaded: {error}"
            ) from None
        if found.identity.digest != encoder["digest"]:
            raise ModelSourceError(
                f"{made}, and {model} holds another encoder by now (digest {found.identity.digest[:12]}). Put back the "
                "one that made it, or restore the collection from documents into an empty folder."
            )
        return found

    def sought(self, collection: str, encoder: Mapping[str, Any], model: str | None) -> EncoderLike | None:
        """As `of`, without waiting: None while it is loaded in the background, again and again where that fails."""
        digest = encoder["digest"]
        held = self._by_digest.get(digest)
        is_busy = self._thread is not None and self._thread.is_alive()
        is_due = time.monotonic() - self._failed_at.get(digest, -math.inf) > _RETRY_S
        if held is None and is_due and not is_busy:
            self._thread = threading.Thread(target=self._seek, args=(collection, dict(encoder), model), daemon=True)
            self._thread.start()
        return held

    def questions(self, encoder: EncoderLike) -> Vectors:
        """[N, E] of the questions that measure the background of scores."""
        digest = encoder.identity.digest
        if digest not in self._questions:
            self._questions[digest] = encoder.encode(background_questions(), is_query=True)
        return self._questions[digest]

    def _seek(self, collection: str, encoder: Mapping[str, Any], model: str | None) -> None:
        digest = encoder["digest"]
        try:
            self.questions(self.of(collection, encoder, model))
        except Exception as error:
            if digest not in self._failed_at:
                known = isinstance(error, SwitchyardError)
                _log.error("collection %s cannot be followed: %s", collection, error, exc_info=None if known else error)
            self._failed_at[digest] = time.monotonic()
