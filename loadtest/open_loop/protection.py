"""Whether a server protected itself: figures of a run before, in and after a spike. No files, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from loadtest.measures import Slo, percentile
from loadtest.open_loop.run import LoadRun
from loadtest.open_loop.server_processes import Sample
from loadtest.open_loop.summary import PartFigures, client_lag
from loadtest.verdicts import Verdict

BASE_SHARE = 0.8
MAX_REJECTION_MS, MIN_GOODPUT_SHARE, MAX_GROWTH = 200.0, 0.8, 0.05
MAX_RECOVERY_S, RECOVERED_SHARE = 5.0, 0.9
MAX_SENDER_SHARE = 0.5
_BEFORE, _SPIKE, _AFTER = range(3)  # parts of the shape


def spike_shape(knee_s: float, factor: float, seconds: float) -> str:
    """The shape of an overload test: as long before and after the spike as it lasts, 15 s at least."""
    base = f"{BASE_SHARE * knee_s:.4g}x{max(15.0, seconds):g}s"
    return f"spike:{base},{factor * knee_s:.4g}x{seconds:g}s,{base}"


def judge(
    parts: Sequence[PartFigures],
    run: LoadRun,
    knee_s: float,
    samples: Sequence[Sample] = (),
    sender_cpu_s: float | None = None,
) -> list[Verdict]:
    """The figures of a run of `spike_shape`.

    Args:
        knee_s: goodput at the knee, in requests/s.
        samples: the server's processes.
        sender_cpu_s: processor time of the process that sent, in seconds.
    """
    spike = parts[_SPIKE]
    return [
        _surplus(spike),
        _goodput(spike, knee_s),
        _answers(spike, knee_s, run.slo),
        _memory(spike, run, samples),
        _recovery(parts, run.slo),
        _sender(parts, run, sender_cpu_s),
    ]


def _surplus(spike: PartFigures) -> Verdict:
    refused_ms = [1000 * each.latency_s for each in spike.requests if each.ending == "rejected" and each.latency_s]
    others = sum(spike.count(ending) for ending in ("failed", "cut off", "not sent"))
    elsewhere = f"{others} requests ended otherwise (failed, cut off or not sent)"
    if not refused_ms:
        words = f"nothing was rejected; {elsewhere}"
        return Verdict("surplus", None if others == 0 else False, None, "ms", words)
    p50, p99 = percentile(refused_ms, 50), percentile(refused_ms, 99)
    words = (
        f"{len(refused_ms)} of {spike.num_offered} rejected with Retry-After, in {p50:.0f} ms at p50, "
        f"{p99:.0f} at p99, {max(refused_ms):.0f} at most; {elsewhere}"
    )
    return Verdict("surplus", p99 < MAX_REJECTION_MS and others == 0, p99, "ms", words)


def _goodput(spike: PartFigures, knee_s: float) -> Verdict:
    share = spike.goodput_s / knee_s
    words = f"{spike.goodput_s:.2f}/s within the objective, {share:.0%} of the knee's {knee_s:.3g}/s"
    return Verdict("goodput", share >= MIN_GOODPUT_SHARE, share, "of the knee", words)


def _answers(spike: PartFigures, knee_s: float, slo: Slo) -> Verdict:
    """Searches are cheap: a server that answered nothing else would keep its goodput by them."""
    due = [each for each in spike.requests if each.kind != "search"]
    if not due:
        return Verdict("answers", None, None, "of the knee", "not judged: only searches were due in the spike")
    good_s = sum(each.keeps(slo) for each in due) / spike.duration_s
    knee_s *= len(due) / spike.num_offered
    words = f"{good_s:.2f}/s streamed or whole, {good_s / knee_s:.0%} of their part of the knee ({knee_s:.3g}/s)"
    return Verdict("answers", good_s / knee_s >= MIN_GOODPUT_SHARE, good_s / knee_s, "of the knee", words)


def _memory(spike: PartFigures, run: LoadRun, samples: Sequence[Sample]) -> Verdict:
    start_s = run.started_unix + spike.start_s
    quarters: list[list[int]] = [[], [], [], []]
    for sample in samples:
        place = int(4 * (sample.unix_s - start_s) // spike.duration_s)
        if 0 <= place < 4 and sample.rss_bytes:
            quarters[place].append(sample.rss_bytes)
    # The first quarter is left out: batches and caches that are bounded fill up in it.
    if not quarters[1] or not quarters[3]:
        return Verdict("memory", None, None, "growth", "not measured: the server's processes were not seen (--data)")
    before, last = median(quarters[1]), median(quarters[3])
    growth = last / before - 1
    words = (
        f"{before / 2**20:,.0f} MiB in the second quarter of the spike, {last / 2**20:,.0f} in the last ({growth:+.1%})"
    )
    return Verdict("memory", growth <= MAX_GROWTH, growth, "growth", words)


def _recovery(parts: Sequence[PartFigures], slo: Slo) -> Verdict:
    spike, after = parts[_SPIKE], parts[_AFTER]
    usual = parts[_BEFORE].good_share
    in_order = sorted(after.requests, key=lambda each: each.intended_s)
    if not in_order or not usual:
        why = "nothing was due after the spike" if usual else "nothing was answered in time before the spike"
        return Verdict("recovery", None, None, "s", f"not measured: {why}")
    num_left, num_good = len(in_order), sum(each.keeps(slo) for each in in_order)
    whole = (
        f"{usual:.0%} of the requests before the spike were within the objective, {num_good / num_left:.0%} after it"
    )
    for number, request in enumerate(in_order):
        if num_good / num_left >= RECOVERED_SHARE * usual:
            took_s = 0.0 if number == 0 else request.intended_s - (spike.start_s + spike.duration_s)
            return Verdict("recovery", took_s < MAX_RECOVERY_S, took_s, "s", f"{took_s:.1f} s after the spike; {whole}")
        num_left, num_good = num_left - 1, num_good - request.keeps(slo)
    return Verdict("recovery", False, None, "s", f"not in the {after.duration_s:g} s that were watched; {whole}")


def _sender(parts: Sequence[PartFigures], run: LoadRun, cpu_s: float | None) -> Verdict:
    """A client that is busy itself, or late, measures itself."""
    lag = client_lag(request for part in parts for request in part.requests)
    if lag is None or cpu_s is None:
        return Verdict("sender", None, None, "of a core", "not measured")
    share = cpu_s / sum(part.duration_s for part in parts)
    words = f"{share:.0%} of a core; requests were sent {lag.p99_ms:.0f} ms late at p99, {lag.max_ms:.0f} at most"
    return Verdict("sender", share <= MAX_SENDER_SHARE and lag.p99_ms <= run.max_lag_ms, share, "of a core", words)
