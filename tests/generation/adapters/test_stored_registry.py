"""Engines on machines that share a database and no disk: the same adapters, and the same tokens."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from replicas import Host, eventually, write_adapter
from sqlalchemy import text
from tiny_adapter import PeftReference, write_tiny_adapter

from engine.config import GeneratorSettings
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.follower import AdapterFollower
from engine.generation.adapters.owner import FILES_FOLDER, AdapterOwner
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.service import AdapterService
from engine.generation.adapters.stored_registry import StoredRegistry
from engine.generation.engine import Engine
from engine.retrieval.store.shared_files import SharedFiles
from engine.values import GenerationRequest, SamplingParams

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=512, kv_tokens=8192, adapter_slots=2)
PROMPT = tuple(range(40, 80))
NUM_NEW = 12


def kept_on(shared_files: SharedFiles, data: Path) -> StoredRegistry:
    return StoredRegistry(shared_files, AdapterRegistry(data / "adapters"))


def answer(engine: Engine, adapter: str) -> list[int]:
    sampling = SamplingParams(max_tokens=NUM_NEW, ignore_eos=True, logprobs=0)
    request = GenerationRequest("one", (), sampling=sampling, adapter=adapter, prompt_token_ids=PROMPT)

    async def tokens() -> list[int]:
        return [token.token_id async for delta in engine.submit(request) for token in delta.logprobs]

    return asyncio.run(tokens())


def test_engines_with_different_empty_data_folders_answer_with_the_tokens_of_one_adapter_in_postgres(
    shared_files: SharedFiles, tiny_model: Path, tmp_path: Path
):
    made = [write_tiny_adapter(tmp_path / f"made{seed}", tiny_model, seed=seed) for seed in (1, 2)]
    reference = PeftReference(tiny_model, {f"v{seed}": folder for seed, folder in enumerate(made)})
    expected = [reference.answer(f"v{seed}", PROMPT, NUM_NEW) for seed in range(2)]
    assert expected[0] != expected[1]

    with contextlib.ExitStack() as opened:

        def start(machine: str) -> tuple[Engine, AdapterService]:
            engine = opened.enter_context(contextlib.closing(Engine(tiny_model, SETTINGS)))
            return engine, AdapterService(engine, kept_on(shared_files, tmp_path / machine), base_name="tiny")

        first, service = start("one")
        old = kept_on(shared_files, tmp_path / "one").add("tone", made[0])
        loaded = service.load("tone")
        assert (loaded.version, loaded.path, answer(first, "tone")) == (old, f"tone/{old}", expected[0])
        second, _ = start("two")
        assert answer(second, "tone") == expected[0]
        service.load("tone", path=None, version=kept_on(shared_files, tmp_path / "elsewhere").add("tone", made[1]))
        third, again = start("three")
        assert answer(first, "tone") == answer(third, "tone") == expected[1]
        shutil.rmtree(tmp_path / "one")
        assert answer(first, "tone") == expected[1]
        # A machine that served it goes, and another one rolls back.
        again.load("tone", version=old)
        service.refresh()
        assert answer(first, "tone") == answer(third, "tone") == expected[0]


def test_adapter_that_is_damaged_in_postgres_is_named_and_the_others_are_served(
    shared_files: SharedFiles, tmp_path: Path
):
    kept = kept_on(shared_files, tmp_path / "one")
    first = AdapterService(Host(), kept, base_name="base")
    for value, name in ((1.0, "tone"), (2.0, "news")):
        kept.add(name, write_adapter(tmp_path / name, value))
        first.load(name)
    (weights,) = [
        digest
        for file, digest in shared_files.records("adapter")["tone"]["files"][kept.locate("tone").name].items()
        if file == "adapter_model.safetensors"
    ]
    with shared_files._engine.begin() as connection:
        damage = text("UPDATE file_pieces SET content = content || '\\x00'::bytea WHERE digest = :digest")
        connection.execute(damage, {"digest": weights})
    second = AdapterService(Host(), kept_on(shared_files, tmp_path / "two"), base_name="base")
    assert [each.name for each in second.served()] == ["news"]
    (tone,) = [each for each in second.statuses() if each.name == "tone"]
    assert "Add what it belongs to again" in str(tone.error) and not tone.is_loaded
    kept.add("tone", tmp_path / "tone")
    assert second.load("tone").is_loaded


def test_owner_that_comes_back_on_another_machine_has_the_adapters_of_postgres_for_its_replicas(
    shared_files: SharedFiles, tmp_path: Path
):
    def owner_on(machine: str) -> AdapterOwner:
        kept = kept_on(shared_files, tmp_path / machine)
        return AdapterOwner(kept, base_name="base", model_digest="", max_rank=64, is_alive=lambda _name: True)

    made = write_adapter(tmp_path / "made", 1.0)
    before = owner_on("one")
    kept_on(shared_files, tmp_path / "one").add("tone", made)
    digest = before.load("tone").digest
    shutil.rmtree(tmp_path / "one")
    after, host = owner_on("two"), Host()
    folders = [DigestFolders(tmp_path / "far"), DigestFolders(tmp_path / "two" / "adapters" / FILES_FOLDER)]
    follower = AdapterFollower(host, after, folders[0], name="far", shared=folders[1])
    follower.start(20)
    try:
        eventually(lambda: host.digests() == {"tone": digest})
    finally:
        follower.close()
        follower.join(20)
