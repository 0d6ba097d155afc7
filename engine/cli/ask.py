"""`switchyard ask`: one question, answered as it is generated, then what the answer rests on."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from engine.cli.client import Client, client_options, print_json


@click.command()
@click.argument("question")
@click.option("--route", type=click.Choice(["auto", "direct", "rag"]), default="auto", show_default=True)
@click.option("--model", default="auto", show_default=True, help="A name of GET /v1/models.")
@click.option("--collection", help="Collection to search; default: the server's.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@client_options
def ask(
    question: str,
    route: str,
    model: str,
    collection: str | None,
    max_tokens: int,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Ask QUESTION; stream the answer, then print route, confidence, citations and timings.

    \b
    Example:
      switchyard ask "How long are volume snapshots kept?" --route rag
    """
    extension: dict[str, Any] = {"route": route}
    if collection:
        extension["collection"] = collection
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "switchyard": extension,
    }
    answer = ""
    outcome: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    finish_reason: str | None = None
    for event in Client(url, api_key).events("/v1/chat/completions", body):
        outcome = event.get("switchyard") or outcome
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            text = choice["delta"].get("content", "")
            answer += text
            finish_reason = choice["finish_reason"] or finish_reason
            if not as_json:
                click.echo(text, nl=False)
    if as_json:
        print_json(
            {
                "question": question,
                "answer": answer,
                "finish_reason": finish_reason,
                **outcome,
                "usage": usage,
            }
        )
        return
    click.echo()
    print_outcome(answer, outcome, usage, finish_reason)


def print_outcome(answer: str, outcome: dict[str, Any], usage: dict[str, Any], finish_reason: str | None) -> None:
    """Route, confidence, reasons, citations and timings, below a streamed answer."""
    console = Console(highlight=False, soft_wrap=True)
    if finish_reason == "length":
        console.print("[dim](cut off at max_tokens)[/dim]")
    confidence = "pinned or no evidence" if outcome["confidence"] is None else f"{outcome['confidence']:.2f}"
    degraded = "  [yellow]degraded[/yellow]" if outcome["degraded"] else ""
    console.print(f"\n[bold]route[/bold]      {outcome['route']}  (confidence {confidence}){degraded}")
    for reason in outcome["reasons"]:
        console.print(f"           [dim]{escape(reason)}[/dim]")
    for number, passage in enumerate(outcome["passages"], start=1):
        label = "[bold]passages[/bold]   " if number == 1 else "           "
        title = escape(passage["title"] or passage["document"])
        place = escape(f"{passage['document']}, characters {passage['start']}-{passage['end']}")
        console.print(f"{label}{number}. {title}  {passage['score']:.2f}  [dim]{place}[/dim]")
    for number, citation in enumerate(outcome["citations"] or [], start=1):
        label = "[bold]citations[/bold]  " if number == 1 else "           "
        quote = " ".join(answer[citation["start"] : citation["end"]].split())
        quote = quote if len(quote) <= 80 else quote[:77] + "..."
        console.print(f"{label}passage {citation['passage'] + 1} ({citation['score']:.2f}): {escape(quote)}")
    timings = ", ".join(f"{name} {value:.0f}" for name, value in outcome["timings_ms"].items())
    console.print(f"[bold]timings[/bold]    {timings} ms")
    if usage:
        console.print(f"[bold]tokens[/bold]     {usage['prompt_tokens']} in, {usage['completion_tokens']} out")
