"""Flags that the load test adds to locust's own; an environment variable sets the default of each."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from locust.argument_parser import LocustArgumentParser

from engine.errors import ConfigError
from loadtest.open_loop.arrivals import parse_shape
from loadtest.questions import DEFAULT_FILE, read_questions


def add_arguments(parser: LocustArgumentParser) -> None:
    """Our own flags, listed by --help."""
    group = parser.add_argument_group("Switchyard options")

    def add(flag: str, default: Any, text: str, env_var: str | None = None, **how: Any) -> None:
        env_var = env_var or "SWITCHYARD_LOADTEST_" + flag.strip("-").replace("-", "_").upper()
        group.add_argument(flag, default=default, env_var=env_var, help=f"{text} (default: %(default)s)", **how)

    questions = _checked(lambda value: read_questions(Path(value)))
    add("--questions", str(DEFAULT_FILE), "JSONL file of questions", type=questions, metavar="FILE")
    number = _whole_number(1)
    add(
        "--combine",
        1,
        "so many questions in one, drawn anew each time: few requests are alike",
        type=number,
        metavar="N",
    )
    add("--collection", None, "collection to ask; none: the server's own default", metavar="NAME")
    add("--route", "auto", "route that chat requests ask for", choices=("auto", "direct", "rag"))
    add("--max-tokens", 64, "most tokens of an answer", type=_whole_number(1), metavar="N")
    add("--stream-weight", 6, "share of streamed chat requests", type=_whole_number(0), metavar="N")
    add("--chat-weight", 1, "share of whole (not streamed) chat requests", type=_whole_number(0), metavar="N")
    add("--search-weight", 3, "share of search requests", type=_whole_number(0), metavar="N")
    add("--slo-ttft-ms", 1000.0, "goodput counts answers with at most this TTFT", type=_positive, metavar="MS")
    add("--slo-tpot-ms", 100.0, "goodput counts answers with at most this TPOT", type=_positive, metavar="MS")
    add("--order-seed", 0, "seed of arrivals and of the order of questions and kinds", type=int, metavar="N")
    add("--api-key", None, "key that the server asks for", env_var="SWITCHYARD_API_KEY", metavar="KEY")
    # Open loop.
    add("--rate", None, "requests/s to send for as long as -t says, answered or not", type=_positive, metavar="RATE")
    shape = _checked(parse_shape)
    add("--shape", None, "rates to send, such as steps:0.5,1,2,4x30s", type=shape, metavar="SHAPE")
    add("--arrivals", "poisson", "gaps between requests that are sent by a rate", choices=("poisson", "even"))
    add("--max-in-flight", 256, "requests that may wait for an answer", type=_whole_number(1), metavar="N")
    add("--max-lag-ms", 50.0, "a run whose client is later than this (p99) is invalid", type=_positive, metavar="MS")
    add("--drain-s", 120.0, "how long to wait for the last answers", type=_positive, metavar="S")
    add("--out", None, "folder for requests.csv, run.json, report.json and report.html", metavar="DIR")


def _checked(check: Callable[[str], Any]) -> Callable[[str], str]:
    """The text itself, once `check` took it."""

    def parse(value: str) -> str:
        try:
            check(value)
        except ConfigError as error:
            raise ArgumentTypeError(str(error).replace("%", "%%")) from None
        return value

    return parse


def _whole_number(minimum: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isdecimal() or int(value) < minimum:
            raise ArgumentTypeError(f"{value!r} is not a whole number of {minimum} or more")
        return int(value)

    return parse


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{value!r} is not a number above 0")
    return number
