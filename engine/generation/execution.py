"""Steps run to their end: computed, read, noted in all books and delivered."""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceOf
from time import perf_counter

from engine.errors import RankLost
from engine.generation.budget import StepBudget
from engine.generation.grammar.matcher import MaskFiller
from engine.generation.jobs import Jobs
from engine.generation.progress import Progress
from engine.generation.runner import Runner
from engine.generation.sampler import Choice
from engine.generation.scheduler import Scheduler
from engine.generation.scoring.scorer import Scorer
from engine.generation.sequence import Sequence
from engine.generation.step import Step

_log = logging.getLogger(__name__)


class Execution:
    """What is done with a step between the scheduler and the readers. The engine's thread alone calls it."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        jobs: Jobs,
        scorer: Scorer,
        budget: StepBudget,
        progress: Progress,
        masks: MaskFiller,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._jobs = jobs
        self._scorer = scorer
        self._budget = budget
        self._progress = progress
        self._masks = masks

    def run(self, step: Step) -> None:
        """Run a step and deliver its tokens. Where it fails, each sequence runs alone and only those at fault end."""
        drafted = [len(sequence.drafts) for sequence in step.sequences if sequence.is_decoding]
        num_decodes, num_drafts = len(drafted), sum(drafted)
        started = perf_counter()
        self._run(step)
        num_prompt_tokens = step.num_total_tokens - num_decodes - num_drafts
        self.observe(num_decodes, num_drafts, num_prompt_tokens, perf_counter() - started)

    def finish(self, step: Step, choices: SequenceOf[SequenceOf[Choice]]) -> None:
        """A step was computed, and these tokens were chosen: note and deliver them."""
        self._scheduler.finish_step(step, [[choice.token_id for choice in each] for each in choices])
        self._scorer.advance(step, self._scheduler)
        self._progress.output_tokens += self._jobs.deliver(step, choices)
        self._progress.note()

    def observe(self, num_decodes: int, num_drafts: int, num_prompt_tokens: int, step_s: float) -> None:
        """A step of so many tokens took `step_s` seconds."""
        self._budget.observe(num_decodes, num_drafts, num_prompt_tokens, step_s)
        self._progress.observe(step_s)

    def _run(self, step: Step) -> None:
        self._jobs.start(step)
        try:
            output = self._runner.run(step)
            self._scorer.read(step, output)  # first: it may be repeated, choosing may not
            choices = self._jobs.choose(step, output, self._masks)
        except RankLost:
            raise
        except Exception as error:
            if len(step.sequences) == 1:
                self._fail(step.sequences[0], error)
                return
            _log.warning("a step of %d requests failed; they run one by one", len(step.sequences), exc_info=error)
            for sequence, num_tokens in zip(step.sequences, step.num_tokens, strict=True):
                self._run(Step((sequence,), (num_tokens,)))
            return
        self.finish(step, choices)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        _log.error("request %s failed", sequence.id, exc_info=error)
        self._progress.note()
        self._scheduler.finish(sequence)
        self._jobs.fail(sequence, error)
        self._scorer.fail(sequence, error)
