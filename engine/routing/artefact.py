"""A router in a folder: `router.json` says what it is, `router.safetensors` holds its arrays.

Read with every size, name, shape and value checked, since the files may come from anywhere; nothing in them is run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked
from safetensors import SafetensorError
from safetensors.numpy import load, save

from engine.durable_files import write_file
from engine.errors import InvalidRouter, SwitchyardError
from engine.regular_files import Unreadable, read_regular
from engine.routing.arms import parse_arm
from engine.routing.artefact_arrays import Arrays, arrays_of, learned_from, trained_on_from
from engine.routing.heads import Floats, Integers, Policy, QualityModel
from engine.routing.keys import Keys, keys_from_json

FORMAT = 1
JSON_FILE, ARRAYS_FILE = "router.json", "router.safetensors"
# Far above a router of 64 arms, 1,000 signals and 200,000 training questions.
MAX_JSON_BYTES, MAX_ARRAYS_BYTES = 4 * 1024**2, 128 * 1024**2
MAX_ARMS, MAX_SIGNALS = 64, 4_096
_MAX_NAME = 200
DEFAULT_EPSILON = 0.01

ObjectiveName = Literal["quality", "latency", "budget"]
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@checked(frozen=True, slots=True, config=_STRICT)
class Objective:
    """What the route is chosen for.

    quality: the best answers; with `max_p95_ms`, of the operating points whose 95th percentile of latency is within it.
    latency: the least mean latency at a quality of the best single arm less `epsilon`, at 95 % confidence.
    budget: the best answers with passages for at most `budget` of the questions.
    """

    name: ObjectiveName = "quality"
    max_p95_ms: float | None = None
    epsilon: float = DEFAULT_EPSILON
    budget: float | None = None


@checked(frozen=True, slots=True, config=_STRICT)
class FrontierPoint:
    """What the questions would have got had each second of latency cost `price` of quality.

    low, high: 95 % interval of `quality`, None for few questions. `tokens` are of prompt and answer, None if unknown.
    `price` is None for what is no operating point of the router: a single arm, the oracle.
    """

    name: str
    price: float | None
    context_rate: float
    quality: float
    low: float | None
    high: float | None
    mean_ms: float
    p50_ms: float
    p95_ms: float
    tokens: float | None


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Questions of the training whose decisions are known. values: [S, F] signals; qualities: [S, A]; chosen: [S]."""

    values: Floats
    qualities: Floats
    chosen: Integers


@dataclass(frozen=True, slots=True)
class Learned:
    """What decides: expected qualities, the choice among them, and rows to test both with."""

    model: QualityModel
    policy: Policy
    self_test: SelfTest


@dataclass(frozen=True, slots=True)
class Artefact:
    """A router. Without `learned` it is the best single arm, `ranked[0]`, and `headline` and `reasons` say why.

    arms: names, in the order of every array. ranked: the same by measured quality, best first. rates: for each of
    `arms`, the share of the training questions that no other arm answered better. signals: names, in the order of
    every array; the router needs all of them. trained_on: `question_number` of each training question, ascending.
    figures: what the training measured, for people. `name` holds the digest of the files.
    """

    created: str
    keys: Keys
    arms: tuple[str, ...]
    ranked: tuple[str, ...]
    rates: tuple[float, ...]
    objective: Objective
    headline: str
    reasons: tuple[str, ...]
    num_questions: int
    signals: tuple[str, ...] = ()
    learned: Learned | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    trained_on: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    name: str = "router"

    @property
    def best_arm(self) -> str:
        """The best single arm."""
        return self.ranked[0]


def question_number(identifier: str) -> int:
    """64 bits of a question's id, by which a router knows what it was trained on."""
    return int.from_bytes(sha256(identifier.encode()).digest()[:8], "little")


def write_artefact(artefact: Artefact, folder: Path) -> Artefact:
    """Write both files into `folder`, over older ones. Returns: the artefact as it will be read, with its name.

    Between the two writes the folder holds no router that is accepted. Raises: SwitchyardError.
    """
    arrays = save(arrays_of(artefact.learned, artefact.trained_on))
    described = {
        "format": FORMAT,
        "created": artefact.created,
        "keys": artefact.keys.to_json(),
        "arms": artefact.arms,
        "ranked": artefact.ranked,
        "rates": artefact.rates,
        "objective": asdict(artefact.objective),
        "headline": artefact.headline,
        "reasons": artefact.reasons,
        "num_questions": artefact.num_questions,
        "is_learned": artefact.learned is not None,
        "signals": artefact.signals,
        "frontier": [asdict(point) for point in artefact.frontier],
        "figures": artefact.figures,
        "arrays_sha256": sha256(arrays).hexdigest(),
    }
    content = json.dumps(described, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / ARRAYS_FILE, arrays)
        write_file(folder / JSON_FILE, content)
    except OSError as error:
        raise SwitchyardError(
            f"{folder}: the router cannot be written ({error.strerror}). Free disk space or name another folder."
        ) from None
    return read_artefact(folder)


def read_artefact(folder: Path) -> Artefact:
    """The router in `folder`, checked but for its self-test. Raises: InvalidRouter naming file and fault."""
    content = _read(folder, JSON_FILE, MAX_JSON_BYTES)
    try:
        described = _Described.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRouter(folder, f"{JSON_FILE}: {f'{place}: ' if place else ''}{first['msg']}") from None
    try:
        described.check()
        keys = keys_from_json(described.keys)
    except ValueError as error:
        raise InvalidRouter(folder, f"{JSON_FILE}: {error}") from None
    raw = _read(folder, ARRAYS_FILE, MAX_ARRAYS_BYTES)
    if sha256(raw).hexdigest() != described.arrays_sha256:
        raise InvalidRouter(folder, f"{ARRAYS_FILE} is not the file that {JSON_FILE} was written with")
    try:
        arrays: Arrays = load(raw)
        trained_on = trained_on_from(arrays)
        learned = None
        if described.is_learned:
            parts = learned_from(arrays, num_arms=len(described.arms), num_signals=len(described.signals))
            model, policy, (values, qualities, chosen) = parts
            learned = Learned(model, policy, SelfTest(values, qualities, chosen))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidRouter(folder, f"{ARRAYS_FILE}: {' '.join(str(error).split())}") from None
    return Artefact(
        created=described.created,
        keys=keys,
        arms=described.arms,
        ranked=described.ranked,
        rates=described.rates,
        objective=described.objective,
        headline=described.headline,
        reasons=described.reasons,
        num_questions=described.num_questions,
        signals=described.signals,
        learned=learned,
        frontier=described.frontier,
        figures=described.figures,
        trained_on=trained_on,
        name=f"router-{sha256(content).hexdigest()[:12]}",
    )


class _Described(BaseModel):
    """`router.json`"""

    model_config = _STRICT

    format: Literal[1]
    created: str = Field(max_length=40)
    keys: dict[str, Any]
    arms: tuple[str, ...] = Field(min_length=1, max_length=MAX_ARMS)
    ranked: tuple[str, ...]
    rates: tuple[float, ...]
    objective: Objective
    headline: str
    reasons: tuple[str, ...]
    num_questions: int = Field(ge=0)
    is_learned: bool
    signals: tuple[str, ...] = Field(max_length=MAX_SIGNALS)
    frontier: tuple[FrontierPoint, ...]
    figures: dict[str, Any]
    arrays_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def check(self) -> None:
        """Raises: ValueError where the parts do not agree."""
        for name in self.arms:
            parse_arm(name)
        if len({*self.arms}) < len(self.arms):
            raise ValueError("arms: an arm is named twice")
        if sorted(self.ranked) != sorted(self.arms):
            raise ValueError("ranked: does not hold the names of arms")
        if len(self.rates) != len(self.arms) or not all(0 <= rate <= 1 for rate in self.rates):
            raise ValueError("rates: must be a share from 0 to 1 for each arm")
        if len({*self.signals}) < len(self.signals):
            raise ValueError("signals: a signal is named twice")
        # Shown and printed as JSON, which has no NaN.
        json.dumps(self.figures, allow_nan=False)
        for name in self.signals:
            if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or " " in name:
                raise ValueError(f"signals: {name[:80]!r} is no name of a signal")
        if self.is_learned and (len(self.arms) < 2 or not self.signals):
            raise ValueError("is_learned: needs two arms and a signal at least")


def _read(folder: Path, file: str, most: int) -> bytes:
    """The content of a regular file, read once. Raises: InvalidRouter."""
    try:
        return read_regular(folder / file, most, "router")
    except Unreadable as error:
        raise InvalidRouter(folder, f"{file} {error}") from None
