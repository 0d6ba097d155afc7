"""Documentation is true: generated pages match the code, links lead somewhere, commands and examples run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from running_server import SWITCHYARD

from docs.generate import PAGES

REPOSITORY = Path(__file__).parents[1]
TEXTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("examples/**/*.md")])
# These start or stop servers, need a registry or a running Ray; tests of their own run them.
STARTING = {"serve", "up", "stop", "bench"}


def blocks(language: str) -> list[tuple[Path, str]]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path, block) for path in TEXTS for block in fence.findall(path.read_text(encoding="utf-8"))]


def commands() -> list[str]:
    lines = [line for _, block in blocks("bash") for line in block.splitlines()]
    found = [line for line in lines if line.startswith("switchyard ")]
    return sorted({line for line in found if shlex.split(line, comments=True)[1] not in STARTING})


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_matches_the_code(name):
    assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_to_files_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [t for t in targets if not t.startswith(("http:", "https:")) and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("line", commands())
def test_command_in_the_documentation_runs(server, line):
    arguments = [str(SWITCHYARD), *shlex.split(line, comments=True)[1:]]
    if arguments[1] == "models" and "pull" in arguments:
        pytest.skip("fetches models from a package registry; tests/test_models.py does so with a local one")
    environment = {**os.environ, "SWITCHYARD_URL": server.url}
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [block for _, block in blocks("python")], ids=lambda block: block.split("\n")[0])
def test_python_example_runs(server, block):
    code = block.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_operation_and_its_backends_are_on_the_page_of_kernels():
    page = (REPOSITORY / "docs" / "kernels.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (REPOSITORY / "kernels").glob("*/__init__.py")}
    assert not {name for name in folders if f"`{name}`" not in page}
    rows = re.findall(r"^\| `(\w+)` \|.*$", page, re.MULTILINE)
    assert set(rows) | {"native", "sampling"} == folders
    for path in (REPOSITORY / "kernels").glob("*/triton_op.py"):
        (row,) = re.findall(rf"^\| `{path.parent.name}` \|.*$", page, re.MULTILINE)
        assert "Triton" in row or "below" in row, row
