"""The next step is on the device before the tokens of this one are on the host.

While a step computes, the host makes the step behind it as if nobody's answer ended, and launches that with tokens that
it does not know: the device takes them from where the step before leaves them. Only then it waits for that one's tokens
and delivers them. An answer that turns out to have ended has one more token on its way, which is thrown away. This is
for answers that need nothing of the host between two tokens; for everything else the pipeline empties first.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from time import perf_counter

from engine.generation.execution import Execution
from engine.generation.jobs import Jobs
from engine.generation.runner import Launched, Runner
from engine.generation.scheduler import Scheduler
from engine.generation.step import Step

_log = logging.getLogger(__name__)


class Pipeline:
    """At most two steps on the device, of which one lasts between two calls. The engine's thread alone calls it."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, jobs: Jobs, execution: Execution, *, is_on: bool = True
    ) -> None:
        """`is_on` False: nothing ever begins."""
        self._runner = runner
        self._scheduler = scheduler
        self._jobs = jobs
        self._execution = execution
        self._is_on = is_on
        self._flight: Launched | None = None
        self._since_s = 0.0  # when the step in flight had the device to itself, as far as the host can tell

    @property
    def is_flying(self) -> bool:
        """Whether a step is on the device whose tokens nobody has read."""
        return self._flight is not None

    def begin(self, step: Step) -> bool:
        """Launch the scheduler's step and return at once; False where it has to run as any other.

        Until `is_flying` is False again, nothing but `go_on` may make a step.
        """
        if not self._is_on or not self._jobs.need_no_host(step):
            return False
        self._since_s = perf_counter()
        self._flight = self._launch(step, None)
        return self.is_flying

    def go_on(self, *, is_last: bool) -> None:
        """Launch the step behind the one in flight, then deliver that one's tokens; `is_last`: launch nothing."""
        flight = self._flight
        assert flight is not None
        following = None if is_last else self._scheduler.step_after(flight.step)
        self._flight = None if following is None else self._launch(following, flight)
        try:
            choices = self._jobs.take_ids(flight.step, flight.token_ids())
        except Exception as error:
            _log.warning("a step of %d requests failed in flight", len(flight.step.sequences), exc_info=error)
            self.discard()  # nothing was noted, so the failed one can run again
            self._repeat(flight.step)
            return
        self._execution.finish(flight.step, choices)
        now_s = perf_counter()
        self._execution.observe(len(flight.step.sequences), 0, 0, now_s - self._since_s)
        self._since_s = now_s

    def discard(self) -> None:
        """Wait for what is in flight, and forget it."""
        flight, self._flight = self._flight, None
        if flight is not None:
            with suppress(Exception):  # whatever it says concerns nobody
                flight.token_ids()

    def _launch(self, step: Step, before: Launched | None) -> Launched | None:
        try:
            return self._runner.launch(step, self._jobs.draws(step), before)
        except Exception as error:
            _log.warning("a step of %d requests could not be launched", len(step.sequences), exc_info=error)
            return None

    def _repeat(self, step: Step) -> None:
        left = tuple(sequence for sequence in step.sequences if sequence.status == "running")
        if left:
            self._execution.run(Step(left, (1,) * len(left)))
