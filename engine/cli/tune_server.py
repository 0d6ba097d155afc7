"""What `switchyard tune` asks of a running server: passages for its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.client import Client
from engine.values import Passage

if TYPE_CHECKING:
    from engine.tuning.run.making import Search


def index_search(client: Client, collection: str | None) -> Search:
    """Questions to passages of a collection, None being the server's default one."""

    def search(questions: Sequence[str], num: int) -> list[list[Passage]]:
        body: dict[str, Any] = {"queries": list(questions), "k": num}
        if collection is not None:
            body["collection"] = collection
        found = client.call("POST", "/v1/search", json=body)
        names = Passage.__slots__
        return [[Passage(**{name: hit[name] for name in names}) for hit in hits] for hits in found["results"]]

    return search
