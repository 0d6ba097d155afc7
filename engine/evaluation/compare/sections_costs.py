"""What arms cost, and what the passages that they are shown hold."""

from __future__ import annotations

from engine.evaluation.compare.cautions import LOW_HITS
from engine.evaluation.compare.figures import Comparison
from engine.evaluation.compare.wording import arm_name, minutes, ranked, whole
from engine.evaluation.figures import Estimate
from engine.report.bars import Bar, bar_chart
from engine.report.html import Content, Html, figure, join, section, table, tag
from engine.report.plots import Point, plot_points
from engine.report.wording import counted, duration, percent


def costs_section(comparison: Comparison) -> Html:
    """Time and tokens of each answer, and what an arm costs once and anew."""
    arms = [each for each in ranked(comparison) if each.p50_ms is not None]
    picture = None
    if arms:
        points = [
            Point(each.p50_ms or 0.0, each.quality.value, each.quality.interval, each.name == comparison.recommended)
            for each in arms
        ]
        label = "Quality over median latency: " + "; ".join(
            f"{each.name} {each.quality.value:.3f} in {each.p50_ms or 0.0:,.0f} ms" for each in arms
        )
        picture = join(
            figure(
                plot_points(points, x_label="median latency (ms)", y_label="quality", name="latency"),
                label,
                "Better is higher and further left. Filled: the recommended arm. Lines: 95 % intervals.",
            ),
            tag("ol", [tag("li", arm_name(each)) for each in arms], class_="keys"),
        )
    rows = [
        (
            arm_name(each),
            whole(each.ttft_ms),
            whole(each.p50_ms),
            whole(each.p95_ms),
            whole(each.tokens_in),
            whole(each.tokens_out),
            percent(each.passages),
            "not known" if each.kind == "adapter" and each.tuning_minutes is None else minutes(each.tuning_minutes),
        )
        for each in ranked(comparison)
    ]
    header = ("arm", "first token ms", "median ms", "p95 ms", "tokens in", "tokens out", "with passages", "tuning")
    return section(
        "costs",
        "Time and cost",
        picture,
        table("Means and percentiles of the answers", header, rows),
        tag("p", _refresh(comparison)),
        tag(
            "p",
            f"Latency is the client's, with {counted(comparison.setting.num_at_once, 'request')} at once; that of the "
            "first token is the server's. Tuning time is that of the adapter's report in the data folder.",
            class_="soft",
        ),
    )


def search_section(comparison: Comparison) -> Html | None:
    """What the search finds, and quality where the shown passages are the right ones and where not."""
    arms = [each for each in ranked(comparison) if each.hits is not None]
    found = comparison.search
    if found is None and not arms:
        return None
    parts: list[Content] = []
    if found is not None:
        header = ("questions", "hit@1", "hit@5", "recall@5", "recall@10", "MRR@10", "nDCG@10", "answer in 10 passages")
        row = (
            f"{found.num_rows:,}",
            *(f"{each:.3f}" for each in (found.hit_1, found.hit_5, found.recall_5, found.recall_10)),
            *(f"{each:.3f}" for each in (found.mrr_10, found.ndcg_10)),
            "" if found.answer_rate is None else percent(found.answer_rate),
        )
        parts.append(table("The search alone, by the documents that questions name", header, [row]))
    else:
        parts.append(tag("p", "No question names documents, so the search alone is not judged.", class_="soft"))
    bars: list[Bar] = []
    rows = []
    for each in arms:
        hits = each.hits
        assert hits is not None
        bars += [
            _bar(arm_name(each), hits.quality_hit, f"right passages ({hits.num_hit:,})", "second"),
            _bar(None, hits.quality_miss, f"wrong ones ({hits.num_rows - hits.num_hit:,})", "first"),
        ]
        rows.append(
            (
                arm_name(each),
                f"{hits.num_rows:,}",
                percent(hits.rate),
                "" if hits.answer_rate is None else percent(hits.answer_rate),
                "" if hits.quality_hit is None else f"{hits.quality_hit.value:.3f}",
                "" if hits.quality_miss is None else f"{hits.quality_miss.value:.3f}",
            )
        )
    if arms:
        parts += [
            bar_chart("Quality with the right passages in the prompt and without them", bars),
            table(
                "The passages that arms were shown",
                ("arm", "questions", "right passages", "answer in them", "quality then", "quality else"),
                rows,
            ),
            tag(
                "p",
                "Passages are right where one is of a document that the question names or, where it names none, holds "
                f"an answer. Below {LOW_HITS:.0%} the search is what to improve first.",
                class_="soft",
            ),
        ]
    return section("search", "What the passages hold", parts)


def _refresh(comparison: Comparison) -> str:
    index = comparison.setting.index
    size = (
        f"The index holds {counted(index['documents'], 'document')} in {counted(index['chunks'], 'passage')}. "
        if index.get("chunks")
        else "The knowledge base is empty. "
    )
    if comparison.refresh is None:
        return size
    return (
        f"{size}One document of {counted(comparison.refresh.num_chunks, 'passage')}, all of them new, is found "
        f"{duration(comparison.refresh.seconds)} after it is sent (median of {comparison.refresh.num_times}). What an "
        "adapter learned changes only by tuning it again."
    )


def _bar(name: Content, estimate: Estimate | None, what: str, kind: str) -> Bar:
    value = None if estimate is None else estimate.value
    shown = f"{what}: {'none' if value is None else f'{value:.3f}'}"
    interval = None if estimate is None else estimate.interval
    return Bar(name, value, shown, interval, "first" if kind == "first" else "second")
