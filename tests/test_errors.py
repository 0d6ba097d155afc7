"""The error tree: survives pickling between processes, and every leaf has a status."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from engine import errors
from engine.api.error_table import error_body, error_response, status_of

EXAMPLES = [
    (errors.InvalidRequest("bad", param="k"), 400),
    (errors.PromptTooLong(5000, 256, 4096), 400),
    (errors.ScoredTextTooLong(3, 5000, 4, 4096), 400),
    (errors.InvalidGrammar("no text matches", param="guided_regex"), 400),
    (errors.UnsupportedMediaType("image/png", ["text/plain"]), 415),
    (errors.PayloadTooLarge(1024, "gateway.max_body_bytes"), 413),
    (errors.Unauthorized(), 401),
    (errors.UnknownModel("x", ["auto"]), 404),
    (errors.UnknownAdapter("x", []), 404),
    (errors.UnknownVersion("x", "0" * 12, []), 404),
    (errors.InvalidAdapter("x", "it is damaged"), 400),
    (errors.UnknownCollection("x", []), 404),
    (errors.UnknownDocument("c", "d"), 404),
    (errors.UnknownJob("0af3"), 404),
    (errors.Overloaded("the queue", 8, "generator.max_queued"), 503),
    (errors.DeadlineExceeded(50), 408),
    (errors.StorageFull("knowledge.db"), 507),
    (errors.ComponentUnavailable("generator", "it died"), 503),
    (errors.AdapterReplaced("x"), 503),
    (errors.NotImplementedYet("GET /metrics"), 501),
    (errors.DataFolderError("locked"), 500),
    (errors.InvalidRouter(Path("router"), "it is damaged"), 500),
    (errors.TrainingDataError("data.jsonl:3: is empty", problems=["line 3: is empty"]), 500),
]


@pytest.mark.parametrize(("error", "status"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_error_keeps_class_message_and_fields_across_processes(error, status):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - what Ray does between our own processes
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert status_of(copy) == status


def test_error_body_has_the_shape_that_openai_clients_read():
    body = error_body(errors.UnknownModel("gpt-5", ["auto", "base"]))
    assert body["error"].keys() == {"message", "type", "code", "param"}
    assert body["error"]["code"] == "model_not_found"
    assert "known: auto, base" in body["error"]["message"]


def test_error_response_says_when_to_retry_where_waiting_helps():
    assert error_response(errors.Overloaded("the queue", 8, "x")).headers["retry-after"] == "1"
    assert "retry-after" not in error_response(errors.Unauthorized()).headers
