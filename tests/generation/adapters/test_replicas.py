"""Adapters on several replicas: a change holds for all of them or for none, and whoever starts has the whole set."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from replicas import Cluster, Host, eventually, write_adapter
from test_training_inputs import FILE, described, unit_rows

from engine.errors import ComponentUnavailable, InvalidAdapter, StoreUnavailable, UnknownAdapter
from engine.generation.adapters import digest_folders, follower
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.inputs import inputs_content, read_inputs
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.service import AdapterService


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    write_adapter(tmp_path / "adapters" / "tone", 1.0)
    write_adapter(tmp_path / "adapters" / "news", 2.0, rank=8)
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def status(cluster: Cluster, name: str):
    return next(each for each in cluster.owner.statuses() if each.name == name)


def test_what_is_answered_holds_for_every_replica(cluster: Cluster):
    for name in ("one", "two"):
        cluster.start(name)
    assert cluster.served() == [{}, {}]
    first = cluster.owner.load("tone")
    assert cluster.served() == [{"tone": first.digest}] * 2
    assert (first.replicas, first.is_loaded, first.path) == (2, True, "tone")
    write_adapter(cluster.home / "tone", 3.0)
    second = cluster.owner.load("tone")
    assert second.digest != first.digest
    assert cluster.served() == [{"tone": second.digest}] * 2
    news = cluster.owner.load("news")
    assert cluster.served() == [{"tone": second.digest, "news": news.digest}] * 2
    cluster.owner.unload("tone")
    assert cluster.served() == [{"news": news.digest}] * 2
    assert [(each.name, each.replicas) for each in cluster.owner.statuses()] == [("news", 2), ("tone", 0)]
    with pytest.raises(UnknownAdapter):
        cluster.owner.unload("tone")


def test_files_are_fetched_in_bounded_pieces_where_the_owner_s_cannot_be_seen(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(digest_folders, "PIECE_BYTES", 100)
    far, near = cluster.start("far"), cluster.start("near", sees_owner=True)
    digest = cluster.owner.load("tone").digest
    assert far.fetched() == [digest] and near.fetched() == []
    assert max(far.line.pieces) == 100 and len(far.line.pieces) > 5 and near.line.pieces == []
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (far.folder / digest / file).read_bytes() == (cluster.home / "tone" / file).read_bytes()


def test_damaged_pieces_are_refused_by_their_digest_and_leave_nothing(cluster: Cluster):
    cluster.start("one")
    two = cluster.start("two")
    two.line.damage = lambda piece: piece[:-1] + bytes([piece[-1] ^ 1])
    with pytest.raises(ComponentUnavailable, match=r"one replica: adapter 'tone'.*could not be copied: what came has"):
        cluster.owner.load("tone")
    eventually(lambda: cluster.served() == [{}, {}])
    assert two.fetched() == []
    assert not status(cluster, "tone").is_loaded
    two.line.damage = lambda piece: piece
    digest = cluster.owner.load("tone").digest
    assert cluster.served() == [{"tone": digest}] * 2


@pytest.mark.parametrize("damage", [lambda piece: piece + b"x", lambda piece: b""], ids=["longer", "empty"])
def test_pieces_of_another_size_than_announced_are_refused(cluster: Cluster, damage):
    cluster.start("one").line.damage = damage
    with pytest.raises(ComponentUnavailable, match=r"has another size than the \d+ bytes announced"):
        cluster.owner.load("tone")


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"../../evil": 3}, r"'\.\./\.\./evil' is none of an adapter's files"),
        ({"/etc/evil": 3}, "is none of an adapter's files"),
        ({"adapter_config.json": 1 << 60}, "has 1152921504606846976 bytes; at most"),
        ({"adapter_config.json": 3}, "adapter_model.safetensors is missing"),
    ],
)
def test_names_and_sizes_that_no_adapter_has_are_refused_before_anything_is_written(cluster: Cluster, sizes, why: str):
    one = cluster.start("one")
    one.line.announced = sizes
    with pytest.raises(ComponentUnavailable, match=why):
        cluster.owner.load("tone")
    assert one.fetched() == [] and one.line.pieces == []
    assert not (cluster.folder / "evil").exists()


def test_owner_gives_no_other_file(cluster: Cluster):
    digest = cluster.owner.load("tone").digest
    assert digest is not None
    with pytest.raises(InvalidAdapter, match="is none of its files"):
        cluster.owner.piece(digest, "../../tone/adapter_config.json", 0)
    with pytest.raises(InvalidAdapter, match="64 digits"):
        cluster.owner.piece("../tone", "adapter_config.json", 0)
    with pytest.raises(InvalidAdapter, match="64 digits"):
        cluster.owner.sizes("..")


def test_adapter_that_one_replica_refuses_is_refused_for_all(cluster: Cluster):
    cluster.start("one")
    cluster.start("two", max_rank=4)
    write_adapter(cluster.home / "tone", 1.0, rank=2)
    before = cluster.owner.load("tone").digest
    write_adapter(cluster.home / "tone", 5.0, rank=8)
    for _ in range(2):  # the second time too
        with pytest.raises(InvalidAdapter, match="its rank r=8 must be from 1 to 4"):
            cluster.owner.load("tone")
        eventually(lambda: cluster.served() == [{"tone": before}] * 2)
    with pytest.raises(InvalidAdapter):
        cluster.owner.load("news")
    eventually(lambda: cluster.served() == [{"tone": before}] * 2)
    assert (status(cluster, "tone").digest, status(cluster, "news").is_loaded) == (before, False)
    cluster.restart_owner()
    assert not status(cluster, "news").is_loaded  # what was refused is not remembered


def test_replica_that_stays_silent_is_waited_for_a_while_and_catches_up_by_itself(cluster: Cluster):
    cluster.restart_owner(timeout_s=0.3)
    one, two = cluster.start("one"), cluster.start("two")
    before = cluster.owner.load("tone").digest
    two.line.is_open.clear()
    with pytest.raises(ComponentUnavailable, match=r"1 of 2 replicas said nothing of adapter 'news' for 0\.3 s"):
        cluster.owner.load("news")
    with pytest.raises(ComponentUnavailable, match="all is as before"):
        cluster.owner.unload("tone")
    eventually(lambda: one.host.digests() == {"tone": before})
    assert status(cluster, "tone").is_loaded and not status(cluster, "news").is_loaded
    two.line.is_open.set()
    eventually(lambda: two.follower.status().version == one.follower.status().version)
    digest = cluster.owner.load("news").digest
    assert cluster.served() == [{"tone": before, "news": digest}] * 2


def test_dead_replica_is_not_waited_for(cluster: Cluster):
    one = cluster.start("one")
    cluster.start("two")
    cluster.kill("two")
    digest = cluster.owner.load("tone").digest
    assert one.host.digests() == {"tone": digest}
    assert status(cluster, "tone").replicas == 1


def test_replica_that_starts_has_the_whole_set_before_it_is_ready(cluster: Cluster):
    cluster.start("one")
    expected = {name: cluster.owner.load(name).digest for name in ("tone", "news")}
    shutil.rmtree(cluster.home / "news")  # what was loaded does not depend on where it came from
    cluster.kill("one")
    assert cluster.start("again").host.digests() == expected
    eventually(lambda: status(cluster, "news").replicas == 1)


def test_replica_fetches_what_it_has_no_more(cluster: Cluster):
    cluster.start("one")
    digest = cluster.owner.load("tone").digest
    cluster.kill("one")
    (cluster.folder / "one" / str(digest) / "adapter_model.safetensors").write_bytes(b"damaged")
    one = cluster.prepare("one")  # another process in the same folder
    cluster.dead.clear()
    one.follower.start(20)
    assert one.host.digests() == {"tone": digest} and one.fetched() == [digest] and one.line.pieces


def test_replica_does_not_start_without_its_adapters_and_names_them(cluster: Cluster):
    cluster.owner.load("tone")
    one = cluster.prepare("one")
    one.line.damage = lambda piece: b""
    with pytest.raises(ComponentUnavailable, match=r"not loaded after 0\.5 s: adapter 'tone': .*could not be copied"):
        one.follower.start(0.5)
    two = cluster.prepare("two")
    two.line.is_cut = True
    with pytest.raises(ComponentUnavailable, match="the line is cut"):
        two.follower.start(0.2)


def test_replica_starts_without_what_does_not_fit_it_and_the_list_says_why(cluster: Cluster):
    for name in ("tone", "news"):
        cluster.owner.load(name)
    one = cluster.start("one", max_rank=4)
    assert list(one.host.digests()) == ["tone"]
    eventually(lambda: status(cluster, "news").error is not None)
    news = status(cluster, "news")
    assert (news.is_loaded, news.replicas) == (False, 0)
    assert news.error == (
        "adapter 'news' cannot be loaded: its rank r=8 must be from 1 to 4 (generator.max_adapter_rank)."
    )
    cluster.owner.unload("news")
    assert [(each.name, each.replicas) for each in cluster.owner.statuses()] == [("news", 0), ("tone", 1)]


def test_restarted_owner_has_the_set_and_waits_for_the_replicas_it_had(cluster: Cluster):
    one, two = cluster.start("one"), cluster.start("two")
    digest = cluster.owner.load("tone").digest
    loads = [list(replica.host.history) for replica in (one, two)]
    two.line.is_open.clear()
    cluster.restart_owner(timeout_s=0.3)
    with pytest.raises(ComponentUnavailable, match="1 of 2 replicas said nothing"):
        cluster.owner.load("news")
    two.line.is_open.set()
    eventually(lambda: status(cluster, "tone").replicas == 2)
    assert cluster.served() == [{"tone": digest}] * 2
    assert two.host.history == loads[1]  # nothing was loaded anew
    cluster.owner.load("news")
    cluster.kill("two")
    cluster.restart_owner()
    assert cluster.owner.load("news").digest
    assert status(cluster, "news").replicas == 1


def test_replicas_serve_on_while_the_owner_is_gone(cluster: Cluster):
    one = cluster.start("one")
    digest = cluster.owner.load("tone").digest
    one.line.is_cut = True
    shutil.rmtree(cluster.home / "tone")
    one.follower.check("tone")
    one.follower.check_health()
    assert one.host.digests() == {"tone": digest}


def test_adapter_that_is_unloaded_while_it_is_fetched_is_forgotten(cluster: Cluster):
    cluster.owner.load("tone")
    digest = cluster.owner.load("news").digest
    arrived, go_on = threading.Event(), threading.Event()

    def hold(piece: bytes) -> bytes:
        arrived.set()
        assert go_on.wait(20)
        return piece

    one = cluster.prepare("one")
    one.line.damage = hold
    starting = threading.Thread(target=one.follower.start, args=(20,))
    starting.start()
    assert arrived.wait(20)
    unloading = threading.Thread(target=cluster.owner.unload, args=("news",))
    unloading.start()
    shutil.rmtree(cluster.home / ".files" / str(digest))
    go_on.set()
    starting.join(20)
    unloading.join(20)
    assert list(one.host.digests()) == ["tone"]
    assert not status(cluster, "news").is_loaded


def test_request_for_an_adapter_that_is_to_be_here_and_is_not_can_be_repeated(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    one = cluster.start("one")
    cluster.kill("one")  # nobody waits for it from here on
    one = cluster.start("late")
    one.line.damage = lambda piece: b""
    monkeypatch.setattr(cluster.owner._fleet, "_is_open", False)
    cluster.owner.load("tone")
    eventually(lambda: bool(one.follower.status().failed))
    with pytest.raises(ComponentUnavailable, match=r"adapter 'tone': .*could not be copied"):
        one.follower.check("tone")
    one.follower.check("other")
    one.follower.check(None)
    one.follower.check_health()
    monkeypatch.setattr(follower, "UNHEALTHY_AFTER_S", 0.0)
    with pytest.raises(ComponentUnavailable, match="adapter 'tone'"):
        one.follower.check_health()
    one.line.damage = lambda piece: piece
    eventually(lambda: list(one.host.digests()) == ["tone"])
    one.follower.check("tone")
    one.follower.check_health()


def test_folder_that_cannot_be_read_refuses_the_change_and_no_replica_hears_of_it(cluster: Cluster):
    one = cluster.start("one")
    (cluster.home / "tone" / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InvalidAdapter, match="is not safetensors"):
        cluster.owner.load("tone")
    with pytest.raises(InvalidAdapter, match="the base model has that name"):
        cluster.owner.load("tiny", "tone")
    assert one.host.history == []


def test_folders_used_long_ago_are_removed_and_those_in_use_stay(tmp_path: Path):
    cluster = Cluster(tmp_path)
    try:
        one = cluster.start("one")
        kept = []
        for number in range(12):
            write_adapter(tmp_path / "adapters" / f"a{number}", float(number))
            kept.append(str(cluster.owner.load(f"a{number}").digest))
            if number:
                cluster.owner.unload(f"a{number}")
        files = {each.name for each in (tmp_path / "adapters" / ".files").iterdir()}
        assert kept[0] in files and len(files) == 9
        assert set(one.fetched()) >= {kept[0], *kept[-4:]}
        assert len(one.fetched()) == 9
    finally:
        cluster.close()


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_changes_and_crashes_leaves_every_replica_with_what_was_answered(cluster: Cluster, seed: int):
    rng = random.Random(seed)
    expected: dict[str, str | None] = {}
    for number in range(30):
        step = rng.choice(("load", "load", "unload", "start", "kill", "owner"))
        name = rng.choice(("tone", "news"))
        if step == "load":
            write_adapter(cluster.home / name, float(rng.randrange(3)))
            expected[name] = cluster.owner.load(name).digest
        elif step == "unload" and name in expected:
            cluster.owner.unload(name)
            del expected[name]
        elif step == "start" and len(cluster.replicas) < 3:
            cluster.start(f"r{number}", sees_owner=rng.random() < 0.5)
        elif step == "kill" and cluster.replicas:
            cluster.kill(rng.choice(sorted(cluster.replicas)))
        elif step == "owner":
            cluster.restart_owner()
        assert cluster.served() == [expected] * len(cluster.replicas), (number, step)


def test_two_that_own_the_same_adapters_for_a_while_come_to_serve_the_same(tmp_path: Path):
    for number, name in enumerate(("tone", "news"), 1):
        write_adapter(tmp_path / "adapters" / name, float(number))
    old, new = (AdapterService(Host(), AdapterRegistry(tmp_path / "adapters"), base_name="base") for _ in range(2))
    old.load("tone")
    new.load("news")  # neither undoes what the other was told
    old.refresh()
    new.refresh()
    assert old._host.digests() == new._host.digests() and set(new._host.digests()) == {"tone", "news"}
    reads = len(new._host.history)
    new.refresh()
    assert len(new._host.history) == reads  # nothing is read again that did not change
    old.unload("tone")
    version = AdapterRegistry(tmp_path / "adapters").add("news", write_adapter(tmp_path / "newer", 3.0))
    new.refresh()
    assert set(new._host.digests()) == {"news"}
    old.load("news", version=version)
    assert new._host.digests() != old._host.digests()
    new.go_on_refreshing(0.01)
    eventually(lambda: new._host.digests() == old._host.digests())
    new.close()


def test_refresh_tells_what_cannot_be_served_and_serves_it_once_another_version_is(tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "adapters")
    good = registry.add("tone", write_adapter(tmp_path / "made", 1.0))
    service = AdapterService(Host(max_rank=4), registry, base_name="base")
    service.load("tone")
    wide = registry.add("tone", write_adapter(tmp_path / "wide", 1.0, rank=8))
    registry.set_served("tone", registry.locate("tone", version=wide))
    service.refresh()
    service.refresh()
    assert "rank r=8" in str(service.statuses()[0].error) and service.served() == []
    registry.set_served("tone", registry.locate("tone", version=good))
    service.refresh()
    assert service.statuses()[0].error is None and [each.name for each in service.served()] == ["tone"]
    service.unload("tone")
    assert service.served() == []


def test_adapter_whose_files_cannot_be_had_is_served_once_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    registry = AdapterRegistry(tmp_path / "adapters")
    registry.add("tone", write_adapter(tmp_path / "made", 1.0))
    registry.set_served("tone", registry.locate("tone"))

    def refuse(*_asked: str) -> Path:
        raise StoreUnavailable("elsewhere", "it does not answer")

    with monkeypatch.context() as away:
        away.setattr(registry, "locate", refuse)
        service = AdapterService(Host(), registry, base_name="base")
        service.refresh()
        assert "does not answer" in str(service.statuses()[0].error) and service.served() == []
    service.refresh()
    assert service.statuses()[0].error is None and [each.name for each in service.served()] == ["tone"]


def test_training_inputs_travel_with_an_adapter_and_damaged_ones_are_fetched_anew(cluster: Cluster):
    content = inputs_content(unit_rows())
    home = cluster.home / "tone"
    (home / FILE).write_bytes(content)
    (home / "switchyard.json").write_text(described(content).model_dump_json())
    far = cluster.start("far")
    digest = cluster.owner.load("tone").digest
    (info,) = far.host.adapters()
    found = read_inputs(info.path, info.manifest, "tone")
    assert found is not None and len(found.embeddings) == 5
    (far.folder / digest / FILE).write_bytes(b"damaged")
    assert not DigestFolders(far.folder).is_intact(digest)
    DigestFolders(far.folder).fetch(digest, cluster.owner)
    assert (far.folder / digest / FILE).read_bytes() == content


def test_adapter_whose_training_inputs_are_missing_is_served_without_them(cluster: Cluster):
    (cluster.home / "tone" / "switchyard.json").write_text(described(b"gone").model_dump_json())
    far = cluster.start("far")
    digest = cluster.owner.load("tone").digest
    assert far.host.digests() == {"tone": digest} and not (far.folder / digest / FILE).exists()
