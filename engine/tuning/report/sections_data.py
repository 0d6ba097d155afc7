"""What the run was given and what it cost: guard, settings, digests."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engine.report.html import Html, join, quoted, section, table, tag
from engine.report.wording import duration, size
from engine.tuning.guard.report import GuardReport
from engine.tuning.guard.show import report_lines
from engine.tuning.outcome import Outcome

_STOPPED = {
    "finished": "all steps were taken",
    "patience": "no evaluation improved any more",
    "time": "the time allowed was over",
}


def guard_section(outcome: Outcome) -> Html:
    """The verdict of the guard, its findings and the figures they rest on."""
    guard, report = outcome.guard, _guard_report(outcome.guard)
    verdict = str(guard.get("verdict", "unknown"))
    forced = " It was trained on all the same, by --force." if outcome.is_forced and verdict == "refuse" else ""
    findings = [
        tag(
            "li",
            tag("strong", f"{finding.get('level', 'note')}: ", class_="badge"),
            quoted(str(finding.get("reason", ""))),
            " ",
            tag("span", quoted(str(finding.get("fix", ""))), class_="soft"),
            class_=_level(finding.get("level")),
        )
        for finding in guard.get("findings") or ()
    ]
    return section(
        "guard",
        "The data, judged before training",
        tag("p", "Verdict of the guard: ", tag("strong", verdict, class_=f"badge {_level(verdict)}"), f".{forced}"),
        tag("ul", findings, class_="findings") if findings else tag("p", "It found nothing to warn of."),
        None if report is None else table("What it measured", ("", "found"), _measured(report), numeric=False),
    )


def run_section(outcome: Outcome) -> Html:
    """Time, memory, settings and digests."""
    run = outcome.run
    taken = run.history[-1].step if run.history else 0
    rows: list[tuple[str, str]] = [
        ("training", f"{duration(60 * run.minutes)}, {run.tokens_per_s:,.0f} tokens/s on {run.device}"),
        ("last session, all in all", duration(60 * outcome.minutes_in_all)),
        ("peak memory", size(run.peak_memory_bytes)),
        ("steps", f"{taken:,} of {run.num_steps:,}: {_STOPPED.get(run.stopped, run.stopped)}"),
        ("kept", f"step {run.best.step:,}, epoch {run.best.epoch:.2f}"),
        (
            "rows",
            f"{outcome.num_train:,} trained on ({outcome.num_train_tokens:,} tokens), "
            f"{outcome.num_validation:,} held out",
        ),
        ("base model", outcome.base_model),
        ("instruction", outcome.instruction or "that of the generator"),
    ]
    if run.peak_gpu_bytes:
        rows.insert(3, ("peak GPU memory", size(run.peak_gpu_bytes)))
    if not outcome.minutes_in_all:
        del rows[1]
    if outcome.task == "qa":
        rows.append(("context in prompts", outcome.context))
    digests = [("adapter", outcome.adapter_digest), ("data", outcome.data_digest), ("base model", outcome.base_digest)]
    settings = [(name.replace("_", " "), _setting(value)) for name, value in run.settings.items()]
    return section(
        "run",
        "The run",
        table("Time, memory and size", ("", ""), [(name, quoted(text)) for name, text in rows], numeric=False),
        tag("details", tag("summary", "Settings"), table("Settings", ("setting", "value"), settings, numeric=False)),
        tag(
            "details",
            tag("summary", "Digests"),
            table(
                "SHA-256", ("of", "digest"), [(name, tag("code", digest)) for name, digest in digests], numeric=False
            ),
        ),
    )


def _measured(report: GuardReport) -> list[tuple[str, Html]]:
    """What the terminal showed, but for the findings; lines that go on are joined to their first."""
    found: list[tuple[str, list[str]]] = []
    for name, text in report_lines(replace(report, findings=())):
        if name:
            found.append((name, [text]))
        else:
            found[-1][1].append(text)
    return [(name, join(*(tag("div", quoted(text)) for text in texts))) for name, texts in found if name != "verdict"]


def _guard_report(content: dict[str, Any]) -> GuardReport | None:
    """None where the figures are missing or of another version; verdict and findings are shown all the same."""
    try:
        report: GuardReport = TypeAdapter(GuardReport).validate_python(content)
    except ValidationError:
        return None
    return report


def _level(level: object) -> str:
    """A level as the page's styles name it."""
    return str(level) if level in ("ok", "risky", "refuse") else "note"


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
