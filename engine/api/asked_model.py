"""What the `model` of a request names."""

from __future__ import annotations

from dataclasses import dataclass

from engine.api.backends import Backends
from engine.errors import UnknownModel
from engine.values import BASE_MODEL

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class AskedModel:
    """`name` is what a response says, `model` what the router is told: BASE_MODEL, an adapter, or None.

    `no_search` says why passages are of no use to it, unless they are asked for.
    """

    name: str
    model: str | None
    no_search: str | None = None


async def asked_model(backends: Backends, asked: str) -> AskedModel:
    """Raises: UnknownModel."""
    info = await backends.model()
    if asked in (AUTO, info.name):
        return AskedModel(info.name, None if asked == AUTO else BASE_MODEL)
    served = {adapter.name: adapter for adapter in await backends.served_adapters()}
    if asked not in served:
        raise UnknownModel(asked, [AUTO, info.name, *served])
    labels = served[asked].task == "classify"
    return AskedModel(asked, asked, f"adapter {asked!r} labels the text itself" if labels else None)
