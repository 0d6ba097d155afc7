"""The container files: what they copy is there, what they end as is nobody's root."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest
from deploy_files import DEPLOY, REPOSITORY

from engine.serving.launcher import GRPC_ENVIRONMENT

FILES = sorted((DEPLOY / "containers").iterdir())


def instructions(path):
    """(instruction, rest) of a container file, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_last_stage_runs_as_a_user_with_a_number_that_is_not_root(path):
    users = [rest for name, rest in instructions(path) if name == "USER"]
    # A name could not be checked by Kubernetes' runAsNonRoot.
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_are_pinned_and_stages_are_there(path):
    parts = instructions(path)
    arguments = dict(rest.split("=", 1) for name, rest in parts if name == "ARG")
    stages = set()
    for name, rest in parts:
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
            assert image in stages or re.search(r":\d", image), image
            assert "latest" not in image
            stages.add(stage)
        if name == "COPY" and "--from=" in rest:
            assert re.search(r"--from=(\w+)", rest)[1] in stages


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_reaches_the_build(path):
    wanted = (REPOSITORY / ".dockerignore").read_text().split("\n")
    kept = {line[1:] for line in wanted if line.startswith("!")}
    assert "*" in wanted
    for name, rest in instructions(path):
        if name == "COPY" and "--from=" not in rest:
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists()
                assert source in kept


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_package_is_installed_in_the_versions_it_was_tested_with(path):
    (install,) = [rest for name, rest in instructions(path) if name == "RUN" and ".[" in rest]
    assert "-c constraints.txt" in install


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_is_left_in_a_layer(path):
    for name, rest in instructions(path):
        if name in {"ARG", "ENV"}:
            assert not re.search(r"TOKEN|PASSWORD|SECRET", rest)


def test_every_extra_that_is_installed_exists():
    declared = re.search(
        r"\[project.optional-dependencies\]\n(.*?)\n\[", (REPOSITORY / "pyproject.toml").read_text(), re.S
    )
    for path in FILES:
        (extra,) = [rest.partition("=")[2] for name, rest in instructions(path) if name == "ARG" and "EXTRAS" in rest]
        assert re.search(rf"^{extra} = ", declared[1], re.MULTILINE), extra


def test_build_context_holds_no_data_folder_and_no_environment():
    patterns = [line for line in (REPOSITORY / ".dockerignore").read_text().split() if not line.startswith(("#", "!"))]
    for name in (".venv", ".git", ".switchyard", "shared"):
        assert any(fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_deployments_in_containers_talk_by_grpc_as_on_one_machine(path):
    given = dict(pair.split("=", 1) for name, rest in instructions(path) if name == "ENV" for pair in rest.split())
    assert given.items() >= GRPC_ENVIRONMENT.items()
