"""Settings: one tree, unknown keys refused with a suggestion, one file for `serve deploy` and `switchyard serve`."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import EngineConfig, parse_config, read_serve_file
from engine.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"generator": {"max_num_seq": 3}}, "generator.max_num_seq is not a setting; did you mean max_num_seqs?"),
        ({"retrievr": {}}, "retrievr is not a setting; did you mean retriever?"),
        (
            {"router": {"zzz": 1}},
            "router.zzz is not a setting; allowed here: abstain, ambiguity, arms, artefact, clarify, min_z, num_cpus, ",
        ),
        ({"generator": {"max_num_seqs": 0}}, "generator.max_num_seqs=0: Input should be greater than or equal to 1"),
        ({"router": {"min_z": float("nan")}}, "router.min_z=nan"),
        (
            {"generator": {"autoscaling": {"max_replica": 3}}},
            "max_replica is not a setting; did you mean max_replicas?",
        ),
        ({"generator": {"autoscaling": {}}}, "generator.autoscaling.max_replicas"),
        (
            {"generator": {"autoscaling": {"min_replicas": 4, "max_replicas": 3}}},
            "max_replicas=3 is below min_replicas=4; raise max_replicas or lower min_replicas",
        ),
        (
            {"generator": {"num_replicas": 1, "autoscaling": {"max_replicas": 3}}},
            "num_replicas=1 and autoscaling exclude each other; remove num_replicas and set autoscaling.min_replicas",
        ),
        ({"retriever": {"chunk_tokens": 20}}, "chunk_overlap_tokens=25 must be below chunk_tokens=20"),
    ],
)
def test_config_names_key_value_and_fix_when_a_setting_is_wrong(args, message):
    with pytest.raises(ConfigError) as error:
        parse_config(args, origin="serve_config.yaml")
    assert str(error.value).startswith("serve_config.yaml: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hidden@host/db",
        "postgresql+psycopg://:hidden@host/db",
        "postgresql://user@host/db?password=hidden",
        "mysql://user@host/hidden",
        "hidden",
    ],
)
def test_store_in_the_configuration_holds_no_password_and_no_message_shows_one(url):
    with pytest.raises(
        ConfigError, match=r"store: it must be postgresql\+psycopg://USER@HOST.*SWITCHYARD_STORE"
    ) as error:
        parse_config({"store": url}, "f")
    assert "hidden" not in str(error.value)
    assert parse_config({"store": "postgresql://user@host:1/db"}, "f").store == "postgresql://user@host:1/db"


def test_config_cannot_be_written_to():
    with pytest.raises(Exception, match="frozen"):
        EngineConfig().profile = "gpu"


def test_a_forward_of_the_encoder_is_shorter_on_a_cpu_unless_a_size_is_set():
    default, own = (parse_config({"retriever": given}, origin="x").retriever for given in ({}, {"batch_tokens": 4096}))
    assert default.forward_tokens("cpu") < default.forward_tokens("cuda")
    assert own.forward_tokens("cpu") == own.forward_tokens("cuda") == 4096


def test_the_committed_serve_config_is_valid_and_binds_to_loopback():
    file = read_serve_file(REPOSITORY / "serve_config.yaml")
    assert file.http.host == "127.0.0.1"
    assert parse_config(file.args, origin="file").profile == "auto"


def test_the_commented_cluster_variant_is_valid_too(tmp_path):
    lines = (REPOSITORY / "serve_config.yaml").read_text().splitlines()
    start = lines.index("# proxy_location: EveryNode")
    variant = tmp_path / "cluster.yaml"
    variant.write_text("\n".join(line.removeprefix("# ") for line in lines[start:]))
    config = parse_config(read_serve_file(variant).args, origin="file")
    assert config.profile == "gpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: [", "is not YAML"),
        ("a: 1", "has no list `applications`"),
        ("applications: []", "needs exactly one application"),
        (
            "applications: [{import_path: 'engine.serving.application:build_app', deployments: [{name: Gateway}]}]",
            "honoured by `serve deploy` only",
        ),
        (
            "http_options: {port: 99999}\napplications: [{import_path: 'engine.serving.application:build_app'}]",
            "http_options.port=99999",
        ),
    ],
)
def test_serve_file_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"serve_config\.yaml") as error:
        read_serve_file(path)
    assert message in str(error.value)


def test_serve_file_that_is_missing_says_so(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_serve_file(tmp_path / "none.yaml")


def test_folders_of_heads_are_absolute_for_replicas_that_work_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"router": {"ambiguity": "heads", "abstain": {"head": "/else/where"}}}
    router = parse_config(settings, "test").router.absolute()
    assert router.ambiguity == tmp_path / "heads" and router.abstain.head == Path("/else/where")
    assert parse_config({}, "test").router.absolute() == parse_config({}, "test").router
