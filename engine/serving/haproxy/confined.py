"""Starts HAProxy in the place of its binary: on the configuration that Ray writes, but for what is open to others.

Ray opens HAProxy's statistics to every interface of the machine and its administration to every user, at fixed ports,
and leaves HAProxy running where Ray itself is killed. Run as a script by Ray; it knows nothing of the rest of this
program, so that it starts at once.

    python confined.py BINARY [HAProxy's arguments]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# Sections that listen on ports of their own; what they show, HAProxy's administration socket tells as well.
_LEFT_OUT = ("frontend prometheus", "listen stats")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def confined(configuration: str) -> str:
    """Ray's configuration without the statistics, with an administration socket for this user alone."""
    lines = []
    is_left_out = False
    for line in configuration.splitlines():
        if line and not line[0].isspace():
            is_left_out = line.strip() in _LEFT_OUT
        if not is_left_out:
            lines.append(line.replace(" mode 666 ", " mode 600 ") if line.strip().startswith("stats socket") else line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Become HAProxy."""
    binary, *arguments = sys.argv[1:]
    parent = os.getppid()
    # Where the process that Ray started us from is killed, nobody else ends HAProxy.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    if "-f" in arguments:
        at = arguments.index("-f") + 1
        written = Path(arguments[at])
        arguments[at] = str(written.with_suffix(".confined.cfg"))
        Path(arguments[at]).write_text(confined(written.read_text()))
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
