"""Judgements over HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest

PATH = "/v1/collections/default/judgements"


def lines(*rows) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def row(number: int, grade=1) -> dict:
    return {"query": f"word{number}", "document": f"d{number}", "grade": grade}


@pytest.fixture
async def filled(client):
    pages = lines(*({"id": f"d{number}", "text": f"word{number} and more"} for number in range(100)))
    assert (await client.post("/v1/collections/default/documents:batch", content=pages)).status_code == 200
    return client


async def test_put_answers_each_line_and_says_how_many_queries_are_missing(filled):
    body = lines(
        row(1), row(2, 11), b"{", {"query": "a", "document": "d1"}, row(3) | {"more": 1}, row(4, 1.5), row(1, 2)
    )
    response = await filled.put(PATH, content=body)
    assert response.status_code == 200
    found = response.json()
    statuses = [one["status"] for one in found["results"]]
    assert statuses == ["created", "failed", "failed", "failed", "failed", "failed", "updated"]
    errors = [one["error"] for one in found["results"] if one["error"]]
    assert errors[0].startswith("line 2: grade: ") and "less than or equal to 10" in errors[0]
    assert "line 3: the body is not valid JSON" in errors[1]
    assert errors[2].startswith("line 4: grade: ") and "line 5: more: unknown field" in errors[3]
    assert (found["judgements"], found["queries"], found["missing"]) == (1, 1, 99)
    assert (await filled.put(PATH, content=b"\n")).status_code == 400


async def test_fit_is_made_shown_and_removed(filled):
    assert (await filled.put(PATH, content=lines(*(row(number) for number in range(100))))).status_code == 200
    for _ in range(3000):
        found = (await filled.get(PATH)).json()
        if not found["is_fitting"]:
            break
        await asyncio.sleep(0.01)
    fit = found["fit"]
    assert (fit["num_fitted"], fit["num_held_out"], found["problem"]) == (50, 50, None)
    assert fit["is_used"] == (found["weight"] is not None)
    assert {"default", "fitted", "dense", "lexical", "gain_low", "gain_high"} <= fit.keys()
    assert (await filled.delete(PATH)).json() == {"deleted": 100}
    found = (await filled.get(PATH)).json()
    assert (found["judgements"], found["fit"], found["weight"], found["missing"]) == (0, None, None, 100)


async def test_judgements_of_an_unknown_collection_are_404(client):
    for method in ("GET", "PUT", "DELETE"):
        response = await client.request(method, "/v1/collections/none/judgements", content=lines(row(1)))
        assert response.status_code == 404 and response.json()["error"]["code"] == "collection_not_found"
