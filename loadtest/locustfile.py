"""Load on the HTTP API: streamed answers, whole answers and searches over real questions. See docs/load-testing.md.

    locust -f loadtest/locustfile.py --headless -u 8 -t 60s --host http://127.0.0.1:8000
    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 --shape steps:0.5,1,2,4x30s --out load

Users form a closed loop: each waits for its answer before it asks again, so an overloaded server is offered less.
With --rate or --shape requests are sent when they are due, answered or not (open loop).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events
from locust.env import Environment
from locust.util.timespan import parse_timespan
from rich.console import Console

from engine.errors import ConfigError, SwitchyardError
from loadtest.asking import KINDS, Asker, Asking, Outcome
from loadtest.flags import add_arguments
from loadtest.measures import Served, Slo
from loadtest.open_loop.arrivals import draw, parse_shape
from loadtest.open_loop.report import make_report, print_summary
from loadtest.open_loop.request_log import REQUESTS_FILE, write_requests
from loadtest.open_loop.run import LoadRun
from loadtest.open_loop.sending import OpenLoop, Planned
from loadtest.questions import ask_combined, ask_in_turn, read_questions
from loadtest.recorder import Recorder
from loadtest.sse import AnswerFailed

NO_ROUTE = "no route yet"
MEASURE_OF_KIND = {"stream": "E2E", "chat": "WHOLE", "search": "SEARCH"}


def prepare(environment: Environment, **_: Any) -> None:
    """Read the questions, plan an open loop, and print our summary after locust's own tables."""
    options = environment.parsed_options
    if not (options.stream_weight or options.chat_weight or options.search_weight):
        _stop("--stream-weight, --chat-weight and --search-weight are all 0; set at least one of them to 1 or more")
    questions = read_questions(Path(options.questions))
    try:
        SwitchyardUser.questions = (
            ask_in_turn(questions, options.order_seed)
            if options.combine == 1
            else ask_combined(questions, options.combine, options.order_seed)
        )
    except ConfigError as error:
        _stop(str(error))
    SwitchyardUser.kinds = random.Random(options.order_seed)
    if options.rate is not None or options.shape is not None:
        SwitchyardUser.open_run = _planned_run(environment)
        # Requests would otherwise wait for one of ten connections.
        SwitchyardUser.concurrency = options.max_in_flight

    def fail_if_nothing_finished(**_: Any) -> None:
        if environment.stats.total.num_requests == 0:
            environment.process_exit_code = 1

    def summarise(**_: Any) -> None:
        slo = Slo(ttft_s=options.slo_ttft_ms / 1000, tpot_s=options.slo_tpot_ms / 1000)
        total = environment.stats.total
        duration_s = (total.last_request_timestamp or total.start_time) - total.start_time
        # Standard output may carry locust's --json.
        SwitchyardUser.recorder.print_summary(Console(stderr=True), slo, duration_s)

    environment.events.quitting.add_listener(fail_if_nothing_finished)
    environment.events.quit.add_listener(summarise)
    if SwitchyardUser.open_run is not None:
        environment.events.quitting.add_listener(_report_open_loop)


events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(prepare)


def _planned_run(environment: Environment) -> LoadRun:
    """What an open loop is to do. Ends the process where the flags do not go together."""
    options = environment.parsed_options
    if options.rate is not None and options.shape is not None:
        _stop("--rate and --shape are both set; a shape has rates of its own, so leave out --rate")
    if options.num_users not in (None, 1) or options.processes or options.master or options.worker:
        _stop("--rate and --shape send from one user in one process; leave out -u, --processes and workers")
    if options.shape is None and not options.run_time:
        _stop(f"--rate needs -t, the time to send for; or --shape constant:{options.rate:g}x60s")
    shape = options.shape or f"constant:{options.rate!r}x{parse_timespan(str(options.run_time))}s"
    try:
        parse_shape(shape)
    except ConfigError as error:
        _stop(str(error))
    # The shape ends the run by itself, after the last answers.
    options.run_time = None
    if options.out is not None:
        try:
            Path(options.out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _stop(f"--out {options.out}: cannot be made ({error.strerror}); name a folder that is writable")
    weights = f"{options.stream_weight} streamed, {options.chat_weight} whole, {options.search_weight} searches"
    asked = Path(options.questions).name + (f", {options.combine} in one" if options.combine > 1 else "")
    return LoadRun(
        url=str(environment.host or options.host or SwitchyardUser.host),
        shape=shape,
        arrivals=options.arrivals,
        seed=options.order_seed,
        workload=f"{weights}; route {options.route}, max_tokens {options.max_tokens}, {asked}",
        slo_ttft_ms=options.slo_ttft_ms,
        slo_tpot_ms=options.slo_tpot_ms,
        max_lag_ms=options.max_lag_ms,
        max_in_flight=options.max_in_flight,
    )


def _report_open_loop(environment: Environment, **_: Any) -> None:
    """Write what was recorded, and the report; an invalid run or a report that fails makes exit code 1."""
    run, loop, out = SwitchyardUser.open_run, SwitchyardUser.open_loop, environment.parsed_options.out
    if run is None or loop is None:
        return
    loop.end()
    if not print_summary(run, loop.requests, Console(stderr=True)):
        environment.process_exit_code = 1
    if out is None:
        return
    try:
        run.write(Path(out))
        write_requests(Path(out) / REQUESTS_FILE, loop.requests)
        page = make_report(Path(out))
        Console(stderr=True).print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    except (SwitchyardError, OSError) as error:
        Console(stderr=True).print(f"loadtest: {error}", markup=False, highlight=False, soft_wrap=True)
        environment.process_exit_code = 1


def _stop(message: str) -> NoReturn:
    Console(stderr=True).print(f"loadtest: {message}", highlight=False)
    raise SystemExit(2)


class SwitchyardUser(FastHttpUser):  # type: ignore[misc]  # locust is untyped here
    """One user who asks question after question, or all that is due in an open loop."""

    # Longer than the server's default deadline of 120 s, so that it is the server that gives up on an answer.
    network_timeout = 180.0
    connection_timeout = 10.0

    recorder = Recorder()
    questions: Iterator[str]
    kinds: random.Random
    open_run: LoadRun | None = None
    open_loop: OpenLoop | None = None

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        asking = Asking(options.route, options.max_tokens, options.collection, options.api_key)
        self.asker = Asker(self.client, asking)
        self.weights = (options.stream_weight, options.chat_weight, options.search_weight)

    def work(self) -> None:
        """One request, or the whole open loop and then the end of the run."""
        if self.open_run is not None:
            self._send_all(self.open_run)
            # The runner ends this user too, so it cannot be told from here.
            gevent.spawn(self.environment.runner.quit)
            gevent.sleep(60)
            return
        kind = self._draw_kind()
        try:
            outcome = self._ask(kind, next(self.questions), time.perf_counter())
        except gevent.GreenletExit:
            # Percentiles would look better than the server is if the slowest requests left no trace.
            self.recorder.unfinished[kind] += 1
            raise
        if outcome.retry_after_s is not None:
            gevent.sleep(outcome.retry_after_s)

    tasks = (work,)

    def _draw_kind(self) -> str:
        return self.kinds.choices(KINDS, self.weights)[0]

    def _send_all(self, run: LoadRun) -> None:
        options = self.environment.parsed_options
        arrivals = draw(parse_shape(run.shape), options.arrivals, run.seed)
        # Drawn before the first is sent, so that nothing of it takes time later.
        plan = [Planned(arrival, self._draw_kind(), next(self.questions)) for arrival in arrivals]
        pool = Pool()
        loop = OpenLoop(self._ask, time.perf_counter, gevent.sleep, pool.spawn, run.max_in_flight)
        SwitchyardUser.open_loop = loop
        SwitchyardUser.open_run = replace(run, num_planned=len(plan), started_unix=time.time())
        try:
            loop.run(plan)
            pool.join(timeout=options.drain_s)
        finally:
            pool.kill(timeout=5)
            self.recorder.unfinished.update(loop.kinds_in_flight())

    def _ask(self, kind: str, question: str, started: float) -> Outcome:
        """Send one request and report it. `started`: when it is timed from."""
        outcome = self.asker.ask(kind, question, started)
        route = outcome.route or NO_ROUTE
        if outcome.ending == "rejected":
            self._fire("REJECTED", f"{outcome.status} {kind}", outcome.latency_s)
        elif outcome.ending == "failed":
            self._fire(MEASURE_OF_KIND[kind], route, outcome.latency_s, failure=outcome.error)
        else:
            tokens = outcome.tokens or 0
            for measure, value_s in (("TTFT", outcome.ttft_s), ("ITL", outcome.itl_s), ("TPOT", outcome.tpot_s)):
                if value_s is not None:
                    gap_s = outcome.max_gap_s if measure == "ITL" else None
                    context = {} if gap_s is None else {"max_gap_ms": gap_s * 1000}
                    self._fire(measure, route, value_s, length=tokens, context=context)
            self._fire(MEASURE_OF_KIND[kind], route, outcome.latency_s, length=tokens)
            # Goodput of an open loop is that of its parts, with all kinds of requests.
            if outcome.ttft_s is not None and self.open_run is None:
                self.recorder.served.append(Served(outcome.ttft_s, outcome.tpot_s))
        return outcome

    def _fire(
        self,
        measure: str,
        name: str,
        elapsed_s: float,
        *,
        length: int = 0,
        context: dict[str, Any] | None = None,
        failure: str | None = None,
    ) -> None:
        self.environment.events.request.fire(
            request_type=measure,
            name=name,
            response_time=elapsed_s * 1000,
            response_length=length,
            exception=None if failure is None else AnswerFailed(failure, None),
            context=context or {},
        )
        self.recorder.add(measure, name, elapsed_s * 1000, failure)
