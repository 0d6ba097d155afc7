"""The process that `ParserPool` starts: documents on standard input, one line of JSON for each on standard output.

A request is a line {"parser", "num_bytes"} and the bytes; an answer is {"text", "title", "sections", "is_markdown"} or
{"error"}. The first line out says that the worker listens. Limits come as JSON on the command line.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.html import parse_html
from engine.retrieval.parsing.limits import IDLE_S, OUT_OF_MEMORY, ParsingLimits
from engine.retrieval.parsing.office import parse_office
from engine.retrieval.parsing.pdf import parse_pdf
from engine.retrieval.parsing.table_rows import parse_csv, parse_jsonl
from engine.retrieval.parsing.text import ParsedDocument

try:
    import resource
except ImportError:  # Windows has no such limits; the time limit of the parent holds there too.
    resource = None  # type: ignore[assignment]

PARSERS: dict[str, Callable[[bytes, ParsingLimits], ParsedDocument]] = {
    "html": parse_html,
    "pdf": parse_pdf,
    "csv": parse_csv,
    "tsv": partial(parse_csv, delimiter="\t"),
    "jsonl": parse_jsonl,
    "docx": partial(parse_office, kind="docx"),
    "pptx": partial(parse_office, kind="pptx"),
    "xlsx": partial(parse_office, kind="xlsx"),
}


def main() -> None:
    """Serve until standard input ends, or nothing came for IDLE_S."""
    limits = ParsingLimits(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not mix with the answers.
    os.dup2(2, 1)
    _limit_resources(limits)
    _send(answers, {"is_ready": True})
    while True:
        _set_alarm(IDLE_S)
        header = sys.stdin.buffer.readline()
        _set_alarm(0)
        if not header:
            return
        request = json.loads(header)
        body = sys.stdin.buffer.read(request["num_bytes"])
        if len(body) < request["num_bytes"]:
            return
        _limit_cpu(limits)
        _send(answers, _answer(request["parser"], body, limits))


def _answer(parser: str, body: bytes, limits: ParsingLimits) -> dict[str, Any]:
    try:
        parsed = PARSERS[parser](body, limits)
    except UnparsableDocument as error:
        return {"error": str(error)}
    except MemoryError:
        # Whatever holds the memory goes with the process.
        os._exit(OUT_OF_MEMORY)
    except Exception as error:
        # Parsers of other people's formats raise anything; here is where it ends.
        return {"error": f"the file cannot be parsed ({type(error).__name__}: {str(error)[:200]}). Save it anew."}
    return {
        "text": parsed.text,
        "title": parsed.title,
        "sections": [(section.start, section.path) for section in parsed.sections],
        "is_markdown": parsed.is_markdown,
    }


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    answers.flush()


def _limit_resources(limits: ParsingLimits) -> None:
    # Searches come first.
    with suppress(OSError, AttributeError):
        os.nice(5)
    if resource is not None:
        _lower(resource.RLIMIT_AS, limits.max_memory_bytes)
        _lower(resource.RLIMIT_CORE, 0)


def _limit_cpu(limits: ParsingLimits) -> None:
    """End a parser that runs on after its parent, which watches the clock, has died."""
    if resource is not None:
        _lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + limits.timeout_s) + 1)


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    # Some platforms name a limit that they do not let anyone set.
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _set_alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main()
