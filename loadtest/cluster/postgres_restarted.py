"""A server whose knowledge base is in PostgreSQL, under open-loop load while the database stops and comes back.

    python -m loadtest.cluster.postgres_restarted --out postgres-restarted
    python -m loadtest.cluster.postgres_restarted --how immediate --rate 2 --time 80 --away 25 --json FILE

Searches, direct answers and answers with passages arrive by Poisson, seven in ten of them searches, while documents are
written one after another, each to be searchable when it is answered. In the middle the database ends: `fast` lets it
close its files, `immediate` does not, as a crash. After --away seconds it is started again. Judged are:

| figure | holds where |
|---|---|
| answers | every request was answered, or refused by 503 with Retry-After or an error that names what is unavailable |
| searches | every search that was due while the database was away was answered |
| writes | each was acknowledged, or refused by 503 with Retry-After, within 30 s |
| resumed | 15 s after the database is back or earlier a write is acknowledged again |
| kept | every document whose write was acknowledged is there in the end, as it was sent |
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from engine.errors import ConfigError
from loadtest.__main__ import check_locust
from loadtest.cluster.commands import command_parser, fetch_models, print_judged
from loadtest.cluster.under_load import Happened, answers_verdict, ingest_docs, under_load
from loadtest.cluster.writer import Write, Writer
from loadtest.open_loop.request_log import Request
from loadtest.open_loop.run import Happening
from loadtest.postgres_server import PostgresServer
from loadtest.server import running_server
from loadtest.verdicts import Verdict, write_verdicts

MAX_WRITE_S, MAX_RESUME_S = 30.0, 15.0
How = Literal["fast", "immediate"]
_MIX = ("--stream-weight", "2", "--chat-weight", "1", "--search-weight", "7")


def run(
    out: Path, *, how: How, seconds: float, rate: float, away_s: float, models: Sequence[str], flags: Sequence[str] = ()
) -> list[Verdict]:
    """Run it and write the report into `out`.

    Args:
        models: options of `switchyard serve`.
        flags: more of the load test.
    """
    out.mkdir(parents=True, exist_ok=True)
    postgres = PostgresServer(is_durable=True)
    try:
        postgres.start()
        with (
            # Indexes of an earlier database are of no use with this one.
            tempfile.TemporaryDirectory(prefix="switchyard-postgres-") as home,
            running_server(Path(home), *models, environment={"SWITCHYARD_STORE": postgres.url}) as url,
        ):
            ingest_docs(url)
            writer = Writer(url)
            writer.start()

            def restart(happened: Happened) -> None:
                time.sleep(seconds / 2)
                postgres.stop() if how == "fast" else postgres.crash()
                happened("database stopped")
                time.sleep(away_s)
                postgres.start()
                happened("database back")

            try:
                requests, happenings, began = under_load(
                    url, out, restart, seconds=seconds, rate=rate, flags=[*_MIX, *flags]
                )
            finally:
                writer.stop()
            return judge(requests, happenings, writer, writer.lost(), began)
    finally:
        postgres.close()


def judge(
    requests: Sequence[Request], happenings: Sequence[Happening], writer: Writer, lost: list[str], began_unix_s: float
) -> list[Verdict]:
    """The figures, in the order of the module's table. `happenings`: the database stopped, and was back."""
    stopped, back = (each.at_s for each in happenings)
    return [
        answers_verdict(requests),
        _searches(requests, stopped, back),
        _writes(writer.writes),
        _resumed(writer.writes, began_unix_s + back),
        writer.verdict(lost),
    ]


def _searches(requests: Sequence[Request], stopped: float, back: float) -> Verdict:
    due = [each for each in requests if each.kind == "search" and stopped <= each.intended_s < back]
    failed = [each for each in due if each.ending != "complete"]
    slowest = max((each.latency_s or 0.0 for each in due if each.ending == "complete"), default=0.0)
    words = f"{len(due) - len(failed)} of {len(due)} answered in the {back - stopped:.0f} s without the database"
    words += f", the slowest in {1000 * slowest:.0f} ms"
    if not due:
        return Verdict("searches", None, None, "requests", "none was due while the database was away; raise --rate")
    return Verdict("searches", not failed, float(len(failed)), "requests", words)


def _writes(writes: Sequence[Write]) -> Verdict:
    unclear = [each for each in writes if not each.is_clear]
    longest_s = max((each.took_s for each in writes), default=0.0)
    refused = sum(not each.is_acknowledged for each in writes)
    words = f"{len(writes)} sent, {refused} refused, {len(unclear)} without a clear answer"
    words += f", the longest wait {longest_s:.1f} s"
    if unclear:
        words += f" (the first: {unclear[0].status} {unclear[0].error})"
    return Verdict("writes", bool(writes) and not unclear and longest_s <= MAX_WRITE_S, longest_s, "s", words)


def _resumed(writes: Sequence[Write], back_unix_s: float) -> Verdict:
    ends = [each.at_unix_s + each.took_s for each in writes if each.is_acknowledged]
    after = [end - back_unix_s for end in ends if end >= back_unix_s]
    if not after:
        return Verdict("resumed", False, None, "s", "no write was acknowledged after the database was back")
    words = f"{after[0]:.1f} s after the database was back a write was acknowledged, {len(after)} in all"
    return Verdict("resumed", after[0] <= MAX_RESUME_S, after[0], "s", words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 where all that was measured holds."""
    parser = command_parser("postgres_restarted", __doc__, rate=2.0)
    parser.add_argument(
        "--out", type=Path, default=Path("postgres-restarted"), help="folder of the report (%(default)s)"
    )
    parser.add_argument(
        "--how", choices=("fast", "immediate"), default="fast", help="how the database ends (%(default)s)"
    )
    parser.add_argument("--time", type=float, default=80.0, help="seconds of load (%(default)s)", metavar="S")
    parser.add_argument(
        "--away", type=float, default=25.0, help="seconds without a database (%(default)s)", metavar="S"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options, flags = parser.parse_known_args(arguments)

    def measure() -> list[Verdict]:
        if not 0 < options.away < options.time / 2:
            raise ConfigError(f"--away {options.away:g} must be above 0 and below half of --time {options.time:g}")
        check_locust()
        fetch_models(options)
        verdicts = run(
            options.out,
            how=options.how,
            seconds=options.time,
            rate=options.rate,
            away_s=options.away,
            models=["--set", f"generator.model={options.generator}", "--set", f"retriever.model={options.encoder}"],
            flags=flags,
        )
        if options.json is not None:
            given = {name: getattr(options, name) for name in ("how", "time", "rate", "away")}
            write_verdicts(options.json, verdicts, **given)
        return verdicts

    return print_judged(measure)


if __name__ == "__main__":
    sys.exit(main())
