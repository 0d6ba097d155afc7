"""The head that judges evidence, on disk: `evidence.json`. Nothing in it is code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.durable_files import write_file
from engine.errors import ConfigError
from engine.regular_files import Unreadable, read_regular
from engine.routing.abstain import EvidenceHead
from engine.routing.ambiguity import SignalPart

HEAD_FILE = "evidence.json"
FORMAT: Literal[1] = 1
MAX_BYTES = 2**20
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Column = Annotated[tuple[_Finite, ...], Field(max_length=1_000)]


class _Content(BaseModel):
    """evidence.json. The columns are in the order of `signals`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    encoder: Annotated[str, Field(max_length=200)]
    signals: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(min_length=1, max_length=1_000)]
    means: _Column
    scales: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(max_length=1_000)]
    weights: _Column
    unknown: _Column
    bias: _Finite
    slope: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    offset: _Finite
    threshold: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _columns_are_as_long_as_the_names(self) -> _Content:
        if len(set(self.signals)) != len(self.signals):
            raise ValueError("signals holds a name twice")
        for name in ("means", "scales", "weights", "unknown"):
            if len(getattr(self, name)) != len(self.signals):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers for {len(self.signals)} signals")
        return self


def write_evidence_head(folder: Path, head: EvidenceHead) -> None:
    """Write the file into `folder`, which must exist; the same head gives the same bytes. Raises: OSError."""
    part = head.signals
    content = _Content(
        **{name: value for name, value in asdict(head).items() if name != "signals"},
        signals=part.names,
        means=tuple(part.means.tolist()),
        scales=tuple(part.scales.tolist()),
        weights=tuple(part.weights.tolist()),
        unknown=tuple(part.unknown.tolist()),
    )
    write_file(folder / HEAD_FILE, (content.model_dump_json(indent=1) + "\n").encode())


def read_evidence_head(folder: Path) -> EvidenceHead:
    """What `write_evidence_head` wrote. Raises: ConfigError naming the file, what is wrong and the fix."""
    path = folder / HEAD_FILE
    try:
        content = _Content.model_validate_json(read_regular(path, MAX_BYTES, "evidence head"))
    except Unreadable as error:
        raise _broken(path, str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise _broken(path, f"{place}: {first['msg']}" if place else first["msg"]) from None
    columns = [np.array(column) for column in (content.means, content.scales, content.weights, content.unknown)]
    part = SignalPart(content.signals, *columns)
    return EvidenceHead(part, content.bias, content.slope, content.offset, content.threshold, content.encoder)


def _broken(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path}: {why}. Fit the head again, or leave router.abstain.head out: then min_z decides.")
