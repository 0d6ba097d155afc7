"""An open-loop load test of a server that is running, as `make loadtest` does it.

    python -m loadtest --url http://127.0.0.1:8000 --shape steps:0.5,1,2,4x30s --out load

Flags that are not listed here go to locust (docs/load-testing.md has them). Starts no server.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import httpx

from engine.errors import ConfigError, SwitchyardError

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_SHAPE = "steps:0.25,0.5,1,2,4x30s"


def check_server(url: str) -> None:
    """Raises: SwitchyardError saying what is missing where no server is ready at `url`."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=10, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SwitchyardError(
            f"no server answers at {url} ({error}). Start one with `make up` or `switchyard serve` and fill it with "
            "`switchyard ingest`, or name another: make loadtest URL=http://HOST:PORT"
        ) from None
    if answer.status_code != 200:
        try:
            missing = ", ".join(map(str, answer.json()["missing"])) or "nothing that it names"
        except (ValueError, KeyError, TypeError):
            missing = f"GET /readyz answers {answer.status_code}, so it may be no Switchyard"
        raise SwitchyardError(f"the server at {url} is not ready: {missing}. Wait, or look at {url}/readyz")


def check_locust() -> None:
    """Raises: ConfigError naming the extra where locust is not installed."""
    # Looked for, not imported: it turns every thread of the process that imports it into a greenlet.
    if importlib.util.find_spec("locust") is None:
        raise ConfigError("the load test needs locust, which is not installed. Run pip install 'switchyard[bench]'.")


def command(url: str, flags: Sequence[str]) -> list[str]:
    """The locust command for one user in one process, without locust's own tables."""
    base = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    return [*base, "--skip-log-setup", "--host", url, *flags]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Become locust with the right flags, or end with exit code 1 where that makes no sense."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=lines[0], epilog=lines[-1], allow_abbrev=False
    )
    parser.add_argument("--url", default=os.environ.get("SWITCHYARD_URL", DEFAULT_URL), help="server (%(default)s)")
    parser.add_argument("--shape", help=f"rates to send (default: {DEFAULT_SHAPE})", metavar="SHAPE")
    parser.add_argument("--rate", help="one rate to send, for as long as -t says", metavar="RATE")
    parser.add_argument("--out", default="loadtest-out", help="folder of the report (%(default)s)", metavar="DIR")
    options, more = parser.parse_known_args(arguments)
    url = options.url.rstrip("/")
    try:
        check_locust()
        check_server(url)
    except SwitchyardError as error:
        sys.exit(f"loadtest: {error}")
    if options.rate is not None:
        load = ["--rate", options.rate, *([] if options.shape is None else ["--shape", options.shape])]
    else:
        load = ["--shape", options.shape or DEFAULT_SHAPE]
    sys.stderr.flush()
    # In place of this process, so that Ctrl-C and an ended terminal reach it, which then reports what it has.
    os.execv(sys.executable, [*command(url, load), "--out", options.out, *more])


if __name__ == "__main__":
    main()
