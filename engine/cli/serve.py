"""`switchyard serve`, `up` and `stop`: the life of a server on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
import psutil
import yaml

from engine.config import EngineConfig, HttpOptions, ServeFile, parse_config, read_serve_file
from engine.errors import ConfigError, DataFolderError, SwitchyardError

DEFAULT_CONFIG = Path("serve_config.yaml")
# In the data folder while a server uses it: its process id and URL.
STATE_FILE = "server.json"
STOP_TIMEOUT_S = 15.0
F = TypeVar("F", bound=Callable[..., Any])


def server_options(command: F) -> F:
    """The options that `serve` and `up` share."""
    for option in (
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="A setting, as generator.dtype=float32.",
        ),
        click.option("--address", help="A running Ray cluster to join; default: a Ray of its own."),
        click.option(
            "--data",
            envvar="SWITCHYARD_DATA",
            type=click.Path(path_type=Path),
            help=f"State folder [default: {EngineConfig.model_fields['data'].default}].",
        ),
        click.option("--port", type=click.IntRange(0, 65535), help=f"[default: {HttpOptions().port}]"),
        click.option("--host", help=f"[default: {HttpOptions().host}]"),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            help=f"Ray Serve configuration [default: {DEFAULT_CONFIG} where there is one].",
        ),
    ):
        command = option(command)
    return command


@click.command()
@server_options
def serve(**options: Any) -> None:
    """Start the server and serve until Ctrl-C.

    \b
    Example:
      switchyard serve --port 8080 --set generator.max_num_seqs=16
    """
    _run(*_settings(**options), address=options["address"])


@click.command()
@server_options
@click.option("--sample", type=click.Path(path_type=Path), help="Folder to ingest when the knowledge base is empty.")
@click.option("--question", help="Question to ask once the server answers.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Folder of an adapter to add and load.")
def up(sample: Path | None, question: str | None, adapter: Path | None, **options: Any) -> None:
    """Start the server, fill an empty knowledge base with a sample, ask one question, then serve until Ctrl-C.

    \b
    Example:
      switchyard up --sample docs --question "What does the router look at?"
      switchyard up --adapter examples/adapters/banking77
    """
    config, http = _settings(**options)
    if adapter is not None and not adapter.is_dir():
        raise ConfigError(f"--adapter {adapter} is no folder; name one that holds an adapter as PEFT saves it.")

    def first_answer(url: str) -> None:
        from engine.cli.first_answer import show_first_answer

        show_first_answer(url, sample, question)
        if adapter is not None:
            from engine.cli.adapter_loading import add_adapter
            from engine.cli.client import Client

            click.echo()
            add_adapter(Client(url), adapter.resolve().name, adapter, config.data, url)

    _run(config, http, address=options["address"], when_ready=first_answer)


@click.command()
@click.option(
    "--data",
    envvar="SWITCHYARD_DATA",
    default=".switchyard",
    show_default=True,
    type=click.Path(path_type=Path),
)
def stop(data: Path) -> None:
    """Stop the server that uses this state folder, and wait until it has ended.

    \b
    Example:
      switchyard stop --data .switchyard
    """
    pid = _running_server(data)
    if pid is None:
        click.echo(f"no server is running on {data}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _is_server(pid):
        if time.monotonic() > deadline:
            raise SwitchyardError(
                f"the server (pid {pid}) did not end within {STOP_TIMEOUT_S:.0f} s; end it: kill -9 {pid}"
            )
        time.sleep(0.1)
    click.echo(f"stopped the server on {data}")


def _running_server(data: Path) -> int | None:
    """The process id of the server that uses this state folder, None when there is none."""
    try:
        pid = int(json.loads((data / STATE_FILE).read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None
    return pid if _is_server(pid) else None


def _is_server(pid: int) -> bool:
    """Whether `pid` is alive and one of ours, not another process that got its number."""
    try:
        return any("switchyard" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _settings(
    config: Path | None,
    host: str | None,
    port: int | None,
    data: Path | None,
    assignments: tuple[str, ...],
    **_: Any,
) -> tuple[EngineConfig, HttpOptions]:
    """The settings of the file, then those of the command line."""
    file = ServeFile()
    if config or DEFAULT_CONFIG.exists():
        file = read_serve_file(config or DEFAULT_CONFIG)
    args = dict(file.args)
    for assignment in assignments:
        _assign(args, assignment)
    if data:
        args["data"] = str(data)
    http = file.http.model_copy(update={k: v for k, v in (("host", host), ("port", port)) if v is not None})
    parsed = parse_config(args, origin="settings")
    return parsed.model_copy(update={"data": parsed.data.expanduser().absolute()}), http


def _assign(args: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {assignment!r} is not KEY=VALUE. Example: --set generator.max_num_seqs=16")
    *groups, name = key.split(".")
    for group in groups:
        inner = args.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {assignment!r}: {group} is a single value, not a group of settings.")
        args = inner
    args[name] = yaml.safe_load(value)


def _run(
    config: EngineConfig,
    http: HttpOptions,
    *,
    address: str | None,
    when_ready: Callable[[str], None] | None = None,
) -> None:
    # Signals raise from here on, so that whatever was started is also ended.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    from engine.serving.launcher import Launcher

    launcher = Launcher(config, http, address)
    launcher.check()
    _make_data_folder(config.data)
    _require_unused(config.data)
    _fetch_models(config)
    state = config.data / STATE_FILE
    is_interrupted = False
    try:
        click.echo("starting Ray and the application ...", err=True)
        state.write_text(json.dumps({"pid": os.getpid(), "url": launcher.url}))
        launcher.start()
        click.echo(f"ready {launcher.url}")
        if when_ready is not None:
            when_ready(launcher.url)
            click.echo(f"\nserving on {launcher.url}; Ctrl-C ends it", err=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        is_interrupted = True
        click.echo("stopping ...", err=True)
    finally:
        # A second Ctrl-C must not leave half of the processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        has_left_ray = launcher.stop()
        state.unlink(missing_ok=True)
        if is_interrupted and not has_left_ray:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _make_data_folder(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
        probe = data / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataFolderError(
            f"cannot write to the data folder {data} ({error.strerror}). Choose another with --data."
        ) from None


def _require_unused(data: Path) -> None:
    """Say so at once; the retriever holds a lock as well, but it would find out only after everything has started."""
    pid = _running_server(data)
    if pid is not None:
        raise DataFolderError(
            f"the data folder {data} is in use by another server (pid {pid}). "
            f"Stop it with `switchyard stop --data {data}`, or choose another folder with --data."
        )


def _fetch_models(config: EngineConfig) -> None:
    """Fetch weights here, where a progress bar can be seen, rather than inside the replicas."""
    from engine.models import resolve_model

    resolve_model(config.retriever.model, kind="encoder", show_progress=True)
    resolve_model(config.generator.model, kind="generator", show_progress=True)
