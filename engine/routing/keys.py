"""What outcomes were measured with, as digests: outcomes and routers of other weights say nothing about these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_CHARS = 200
_OPTIONAL = ("index", "encoder")


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests (any text that names a content) of the generator's weights, the index, the encoder and each adapter.

    `index` and `encoder` are None where nothing was searched. `others` are further ones, compared where both have them.
    """

    model: str
    index: str | None = None
    encoder: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)

    def differences(self, other: Keys) -> list[str]:
        """What `other` has differently, in words: `index is b2..., was a1...`. Empty where they agree.

        An adapter that only one of them names is no difference.
        """
        pairs: list[tuple[str, str | None, str | None]] = [
            ("model", self.model, other.model),
            ("index", self.index, other.index),
            ("encoder", self.encoder, other.encoder),
        ]
        for what, mine, theirs in (
            ("adapter ", self.adapters, other.adapters),
            ("", self.others, other.others),
        ):
            pairs += [(what + name, mine[name], theirs[name]) for name in sorted({*mine} & {*theirs})]
        return [f"{name} is {_short(new)}, was {_short(old)}" for name, old, new in pairs if old != new]

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which `keys_from_json` makes the same keys."""
        return {
            "model": self.model,
            "index": self.index,
            "encoder": self.encoder,
            "adapters": dict(self.adapters),
            **self.others,
        }


def keys_from_json(content: Any) -> Keys:
    """What `Keys.to_json` gave. Raises: ValueError naming the key and what it must be."""
    if not isinstance(content, dict):
        raise ValueError(f"the keys are {type(content).__name__}, not an object of digests")
    known: dict[str, Any] = {"adapters": {}, "others": {}}
    for name, value in content.items():
        if name == "adapters":
            if not isinstance(value, dict) or not all(_is_text(each) for pair in value.items() for each in pair):
                raise ValueError("key 'adapters' must be an object of a digest by the name of each adapter")
            known["adapters"] = dict(value)
        elif value is None and name in _OPTIONAL:
            known[name] = None
        elif not _is_text(value) or not _is_text(name):
            raise ValueError(f"key {name[:80]!r} must be a text of 1 to {_MAX_CHARS} characters")
        elif name in ("model", *_OPTIONAL):
            known[name] = value
        else:
            known["others"][name] = value
    if "model" not in known:
        raise ValueError("key 'model', the digest of the generator's weights, is missing")
    return Keys(**known)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_CHARS


def _short(digest: str | None) -> str:
    if digest is None:
        return "none"
    return digest if len(digest) <= 16 else digest[:12] + "..."
