"""What deciding costs, measured: from signals to decisions, as a server makes them."""

from __future__ import annotations

import time

import numpy as np

from engine.evaluation.figures import Overhead
from engine.evaluation.table import OutcomeTable
from engine.routing.artefact import Artefact
from engine.routing.decide import Router, Serving
from engine.routing.heads import Floats

# A server decides for at most so many questions at once; as many decisions alone are timed.
BATCH, NUM_TIMED = 32, 512


def measure_overhead(artefact: Artefact, table: OutcomeTable) -> Overhead:
    """Milliseconds of decisions for questions of `table`, in this process and on this machine.

    Making the signals is not in it: `switchyard bench router` times both.
    """
    places = [table.signals.index(name) for name in artefact.signals]
    signals = table.values[np.arange(NUM_TIMED) % len(table)][:, places]
    router = Router(artefact, Serving(artefact.keys, artefact.arms, artefact.signals))
    router.decide(signals[:BATCH])
    alone = [_ms(router, signals[row : row + 1]) for row in range(NUM_TIMED)]
    batched = [_ms(router, signals[row : row + BATCH]) / BATCH for row in range(0, NUM_TIMED, BATCH)]
    p50, p95 = np.percentile(alone, (50, 95))
    return Overhead(float(p50), float(p95), BATCH, float(np.median(batched)))


def _ms(router: Router, signals: Floats) -> float:
    started = time.perf_counter()
    router.decide(signals)
    return 1e3 * (time.perf_counter() - started)
