"""Lines of JSON that are checked: what is wrong with one, in words that name the place and the value."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.tuning.data.source import encoding_fault


class Checked(BaseModel):
    """Base of what a line may hold: types as they are, no other fields, no infinite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def json_object(line: str) -> dict[str, Any]:
    """The object of a line. Raises: ValueError saying what the line is instead."""
    fault = encoding_fault(line)
    if fault is not None:
        raise ValueError(fault)
    try:
        content = json.loads(line, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"is {type(content).__name__}, not an object")
    return content


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong: `arms.base.quality: input should be ... (it is 1.5)`."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part)[:80] for part in first["loc"])
    seen = first["input"]
    got = "" if isinstance(seen, dict) else f" (it is {json.dumps(seen, default=str)[:80]})"
    return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}{got}"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON; write null for what is not known")
