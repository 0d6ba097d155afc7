"""Every error that a user can meet, as one tree.

    SwitchyardError                  something a user can act on; the message names value, allowed values and fix
    |-- ConfigError                  a setting is unknown, malformed or contradictory
    |-- ModelSourceError             weights cannot be fetched, verified or read
    |-- DataFolderError              the data folder is locked, read-only, full or from another version
    |-- SnapshotError                a snapshot is damaged, foreign or does not fit; nothing was changed
    |-- TrainingDataError            a file of examples cannot be read or holds bad rows
    |-- TrainingError                training cannot start or go on; the best adapter so far is kept
    |   |-- TrainingDiverged         the loss grew or is not finite
    |   `-- CheckpointMismatch       a stopped run is of other data or settings than it is asked to go on with
    |-- InvalidRouter                a router's files are missing, damaged or not what they say
    |-- RankLost                     a process of a tensor-parallel generator died; the generator ends and is replaced
    |-- ServerUnreachable            a client command found no server
    `-- RequestError                 one HTTP request failed; `api.error_table` maps each class to a status
        |-- InvalidRequest           a field is missing, malformed or out of range
        |   |-- PromptTooLong        messages leave no room in the model's context
        |   |   `-- ScoredTextTooLong  one of several prompts leaves none for what is scored behind it
        |   |-- UnsupportedField     a field of OpenAI's API that is not implemented
        |   |-- InvalidAdapter       an adapter's files are missing, damaged or do not fit the generator
        |   |-- InvalidGrammar       a schema, expression or choice is malformed, too large or matched by no text
        |   `-- UnparsableDocument   a document is not the text its type says
        |-- UnsupportedMediaType     a body or document of a type that nothing here reads
        |-- PayloadTooLarge          a body over its limit
        |-- Unauthorized             the API key is missing or wrong
        |-- Forbidden                the API key is a tenant's, and what it asks for concerns all of them
        |-- Conflict                 what is asked for cannot be done while something else is as it is
        |-- NotFound
        |   |-- UnknownModel
        |   |-- UnknownAdapter
        |   |-- UnknownVersion       of an adapter
        |   |-- UnknownCollection
        |   |-- UnknownDocument
        |   |-- UnknownGeneration    of a collection
        |   |-- UnknownJob
        |   `-- UnknownResponse
        |-- Overloaded               a bounded queue is full; carries Retry-After
        |   |-- ExpectedTooLate      it is not full, but what waits in it takes too long
        |   `-- SearchTooLate        so does what waits before a search, beside answers
        |-- DeadlineExceeded         the request's deadline passed
        |-- StorageFull              the disk has no room; nothing of the write was kept
        |-- NotImplementedYet        an address of the published interface that this version does not serve
        `-- ComponentUnavailable     a component died or does not answer; carries Retry-After
            |-- AdapterReplaced      an adapter's name came to stand for other files meanwhile
            |-- StoreUnavailable     the database of the knowledge base does not answer
            `-- BehindStore          a retriever has yet to follow a write that another one has stored

Errors travel between processes, so each one is rebuilt from its message and fields rather than its constructor.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class SwitchyardError(Exception):
    """Base of the tree. `str(error)` is one line for a user: value seen, values allowed, fix."""

    code = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[SwitchyardError], args: tuple[Any, ...], fields: dict[str, Any]) -> SwitchyardError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigError(SwitchyardError):
    """A setting is unknown, malformed or contradicts another."""

    code = "invalid_config"


class ModelSourceError(SwitchyardError):
    """Weights cannot be fetched, verified or read."""

    code = "model_source"


class DataFolderError(SwitchyardError):
    """The data folder is locked by another server, not writable, full or of an unknown version."""

    code = "data_folder"


class SnapshotError(SwitchyardError):
    """A snapshot cannot be written, is damaged or foreign, or does not fit the store; nothing was changed."""

    code = "snapshot"


class TrainingDataError(SwitchyardError):
    """A file of examples cannot be read, or holds bad rows. `problems` has a sentence for each of the first ones."""

    code = "training_data"

    def __init__(self, message: str, *, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class TrainingError(SwitchyardError):
    """Training cannot start or go on."""

    code = "training"


class TrainingDiverged(TrainingError):
    """The loss grew or is not finite. The adapter of the best evaluation, if there was one, lies in its folder."""

    code = "training_diverged"


class CheckpointMismatch(TrainingError):
    """A folder holds a stopped run of other data or settings."""

    code = "checkpoint_mismatch"


class RankLost(SwitchyardError):
    """A process of a tensor-parallel generator died or does not answer, so that none of them can go on."""

    code = "rank_lost"


class InvalidRouter(SwitchyardError):
    """A router's files are missing, damaged or not what they say; no decision is made with them."""

    code = "invalid_router"

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(f"{folder}: holds no router that can be used: {why}. Write it anew: switchyard router train.")


class ServerUnreachable(SwitchyardError):
    """A client command found no server at its URL."""

    code = "server_unreachable"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no server answers at {url} ({why}). Start one with `switchyard serve`, "
            "or name another with --url or SWITCHYARD_URL."
        )


class RequestError(SwitchyardError):
    """One request failed. `param` names the offending field; `retry_after_s` is set where waiting helps."""

    code = "request_failed"
    param: str | None = None
    retry_after_s: int | None = None


class InvalidRequest(RequestError):
    """A field is missing, malformed or out of range."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedField(InvalidRequest):
    """A field of OpenAI's API that is not implemented: refused rather than ignored."""

    code = "unsupported_field"


class PromptTooLong(InvalidRequest):
    """The messages leave no room for an answer in the model's context."""

    code = "context_length_exceeded"

    def __init__(self, num_prompt_tokens: int, max_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens and max_tokens asks for {max_tokens}, together more than "
            f"max_model_len={max_model_len}. Shorten the messages, lower max_tokens, "
            "or raise generator.max_model_len.",
            param="messages",
        )
        self.num_prompt_tokens = num_prompt_tokens


class ScoredTextTooLong(PromptTooLong):
    """One of several prompts leaves no room for the longest text that is to be scored behind it.

    `index` is its place, from 0; `num_prompt_tokens` and `num_scored_tokens` are its size.
    """

    def __init__(self, index: int, num_prompt_tokens: int, num_scored_tokens: int, max_model_len: int) -> None:
        RequestError.__init__(
            self,
            f"input {index} has {num_prompt_tokens} tokens as a prompt and the longest text to score behind it "
            f"{num_scored_tokens}, together more than max_model_len={max_model_len}. Shorten it, "
            "or raise generator.max_model_len.",
        )
        self.param = "input"
        self.index = index
        self.num_prompt_tokens = num_prompt_tokens
        self.num_scored_tokens = num_scored_tokens
        self.max_model_len = max_model_len


class InvalidAdapter(InvalidRequest):
    """An adapter's files are missing, damaged or do not fit the generator; nothing was loaded."""

    code = "invalid_adapter"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"adapter {name!r} cannot be loaded: {why}.", param="name")


class InvalidGrammar(InvalidRequest):
    """The schema, regular expression or choice that an answer is to match is malformed, too large or unsatisfiable."""

    code = "invalid_grammar"


class UnparsableDocument(InvalidRequest):
    """A document's bytes are not the text that its content type says."""

    code = "unparsable_document"


class UnsupportedMediaType(RequestError):
    """A body or document of a type that nothing here reads."""

    code = "unsupported_media_type"

    def __init__(self, content_type: str, allowed: Iterable[str]) -> None:
        super().__init__(f"content type {content_type[:80]!r} is not supported; allowed: {', '.join(sorted(allowed))}.")
        self.param = "content_type"


class PayloadTooLarge(RequestError):
    """A body over its limit."""

    code = "payload_too_large"

    def __init__(self, limit_bytes: int, setting: str) -> None:
        super().__init__(
            f"the body is larger than {limit_bytes} bytes. Send less at once, or raise {setting} in the configuration."
        )


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("the API key is missing or wrong. Send `Authorization: Bearer KEY` (CLI: --api-key).")


class Forbidden(RequestError):
    """The API key belongs to a tenant, and what it asks for concerns all of them."""

    code = "forbidden"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} concerns every tenant of this server. Use a key that gateway.key_tenants does not name."
        )


class Conflict(RequestError):
    """What is asked for cannot be done while something else is as it is."""

    code = "conflict"


class NotFound(RequestError):
    """Nothing lives at this address."""

    code = "not_found"


class UnknownModel(NotFound):
    """The request names a model that is neither `auto`, the base model nor a loaded adapter."""

    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"model {name!r} is unknown; known: {', '.join(known)}. Use a name from GET /v1/models.")
        self.param = "model"


class UnknownAdapter(NotFound):
    """The request names an adapter that is not there."""

    code = "adapter_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"adapter {name!r} is unknown; known: {', '.join(sorted(known)) or 'none'}. "
            "Put its PEFT folder into the data folder's adapters/, then: switchyard adapters load NAME."
        )
        self.param = "name"


class UnknownVersion(NotFound):
    """The request names a version that the adapter does not have, or no longer."""

    code = "adapter_version_not_found"

    def __init__(self, adapter: str, version: str, known: Iterable[str]) -> None:
        super().__init__(
            f"adapter {adapter!r} has no version {version[:80]!r}; it has: {', '.join(known) or 'none'}. "
            "`switchyard adapters show NAME` says when each was added."
        )
        self.param = "version"


class UnknownCollection(NotFound):
    """The request names a collection that holds nothing."""

    code = "collection_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"collection {name!r} is unknown; known: {', '.join(sorted(known)) or 'none'}. "
            f"Create it by adding a document: switchyard ingest PATH --collection {name}."
        )
        self.param = "collection"


class UnknownDocument(NotFound):
    """The collection has no such document."""

    code = "document_not_found"

    def __init__(self, collection: str, document: str) -> None:
        super().__init__(
            f"collection {collection!r} has no document {document!r}. "
            f"GET /v1/collections/{collection}/documents lists the ids."
        )
        self.param = "id"


class UnknownGeneration(NotFound):
    """The collection has no generation of this number, or has dropped it."""

    code = "generation_not_found"

    def __init__(self, collection: str, number: int, known: Iterable[int]) -> None:
        super().__init__(
            f"collection {collection!r} has no generation {number}; kept: {', '.join(map(str, known))}. "
            f"See: switchyard generations list {collection}"
        )


class UnknownJob(NotFound):
    """No job of this id is known to the caller's tenant."""

    code = "job_not_found"

    def __init__(self, job: str) -> None:
        super().__init__(f"job {job[:80]!a} is unknown, or finished long ago. GET /v1/jobs lists the recent ones.")
        self.param = "id"


class UnknownResponse(NotFound):
    """Feedback names an answer that is not remembered, or was another tenant's."""

    code = "response_not_found"

    def __init__(self, response: str, most: int) -> None:
        super().__init__(
            f"response {response[:80]!a} is unknown, or not among the last {most:,} answers, which can be rated. "
            "Send the id of a chat's response soon after it, or raise gateway.rated_answers."
        )
        self.param = "id"


class Overloaded(RequestError):
    """A bounded queue is full."""

    code = "overloaded"

    def __init__(self, what: str, limit: int, setting: str, retry_after_s: int = 1) -> None:
        super().__init__(
            f"{what} is full ({limit} waiting). Retry after {retry_after_s} s, or raise {setting} where memory allows."
        )
        self.retry_after_s = retry_after_s


class ExpectedTooLate(Overloaded):
    """Those that wait before a request take longer than it may wait."""

    def __init__(self, num_waiting: int, expected_s: float, limit_ms: float, setting: str, retry_after_s: int) -> None:
        RequestError.__init__(
            self,
            f"the first token is expected after {expected_s:.1f} s ({num_waiting} requests wait), not safely within "
            f"{setting}={limit_ms:.0f} ms. Retry after {retry_after_s} s, raise {setting}, or add capacity.",
        )
        self.retry_after_s = retry_after_s


class SearchTooLate(Overloaded):
    """Searches that wait for their turn beside answers take longer than another one may wait."""

    def __init__(self, num_waiting: int, expected_s: float, limit_ms: float, retry_after_s: int) -> None:
        RequestError.__init__(
            self,
            f"the search would begin after {expected_s:.1f} s ({num_waiting} queries wait while answers are computed), "
            f"not safely within gateway.max_ttft_ms={limit_ms:.0f} ms. Retry after {retry_after_s} s, raise "
            "gateway.search_share, or add capacity.",
        )
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The request's deadline passed before its answer was complete."""

    code = "deadline_exceeded"

    def __init__(self, deadline_ms: float) -> None:
        super().__init__(
            f"the deadline of {deadline_ms:.0f} ms passed. Ask for fewer tokens, "
            "raise switchyard.deadline_ms, or add capacity."
        )
        self.param = "switchyard.deadline_ms"


class StorageFull(RequestError):
    """The disk has no room for a write; nothing of it was kept."""

    code = "storage_full"

    def __init__(self, path: str) -> None:
        super().__init__(
            f"no space left for {path}; nothing of this write was stored. Free disk space and send it again."
        )


class ComponentUnavailable(RequestError):
    """A component died or does not answer; it is restarted by the deployment."""

    code = "component_unavailable"

    def __init__(self, component: str, why: str, retry_after_s: int = 2) -> None:
        super().__init__(f"the {component} is unavailable ({why}). Retry after {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class BehindStore(ComponentUnavailable):
    """A retriever that follows the store has not yet seen a write that another process has committed."""

    def __init__(self, collection: str, version: int | None = None, wanted: int | None = None) -> None:
        why = f"documents of collection {collection!r} change faster than it follows"
        if wanted is not None:
            why = f"this replica has collection {collection!r} at version {version}, min_version={wanted} was asked for"
        super().__init__("retriever", why, retry_after_s=1)


class AdapterReplaced(ComponentUnavailable):
    """An adapter's name came to stand for other files while a request was on its way."""

    def __init__(self, name: str) -> None:
        super().__init__("generator", f"adapter {name!r} was replaced while it was being asked", retry_after_s=1)


class StoreUnavailable(ComponentUnavailable):
    """The database of the knowledge base does not answer, or ended what was under way.

    `is_settled` False: nobody knows yet whether the write was stored; to send it again is safe.
    """

    def __init__(self, store: str, why: str, *, is_settled: bool = True) -> None:
        super().__init__(f"store {store}", why, retry_after_s=5)
        self.is_settled = is_settled


class NotImplementedYet(RequestError):
    """An address of the published interface that this version does not serve."""

    code = "not_implemented"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not implemented in this version. GET /openapi.json lists what is.")
