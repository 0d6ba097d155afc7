"""Imports point one way, and names of other packages are not hidden."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ENGINE = REPOSITORY / "engine"
# A package may import those after it.
ORDER = ["cli", "serving", "api", "evaluation", "tuning", "retrieval", "routing", "generation", "metrics", "report"]
SIBLINGS = {"retrieval", "routing", "generation"}
# What is computed for each request, or by everybody, waits for no heavy import.
NUMPY_ALONE = {"routing", "metrics"}


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


FILES = sorted(ENGINE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ENGINE)))
def test_module_imports_only_what_its_layer_may(path):
    package = path.relative_to(ENGINE).parts[0]
    imported = imports_of(path)
    if package != "serving":
        assert not any(name == "ray" or name.startswith("ray.") for name in imported), "only engine/serving imports Ray"
    if package != "api" and package != "serving":
        assert not any(name.startswith("fastapi") for name in imported), "only engine/api imports FastAPI"
    if package not in ORDER:
        return
    above = set(ORDER[: ORDER.index(package)]) | (SIBLINGS - {package} if package in SIBLINGS else set())
    used = {name.split(".")[1] for name in imported if name.startswith("engine.") and name.count(".") >= 1}
    if package in NUMPY_ALONE:
        heavy = {name.split(".")[0] for name in imported} & {"torch", "sklearn", "scipy", "transformers", "matplotlib"}
        assert not heavy, f"{path.relative_to(REPOSITORY)} imports {sorted(heavy)}"
    # The command line starts servers through the launcher, and nothing else may look upwards.
    assert not used & above, f"{path.relative_to(REPOSITORY)} imports from {sorted(used & above)}"


FORBIDDEN = {"pickle", "cloudpickle", "marshal", "shelve"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ENGINE)))
def test_module_runs_no_foreign_code(path):
    assert not imports_of(path) & FORBIDDEN
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "torch.load", "os.system"}, f"{path}: {name}"
            if name == "yaml.load":
                loader = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("Loader")
                assert loader == "yaml.BaseLoader", f"{path}: yaml.load builds objects with other loaders"
        if isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "shell"}:
            assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}: {node.arg}"


def test_transformers_imports_beside_our_package_named_kernels():
    code = "import kernels, transformers; from transformers import AutoModelForCausalLM; print(kernels.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.stdout.strip() == "0.0.0", done.stderr


def test_help_of_the_command_waits_neither_for_torch_nor_for_ray():
    code = (
        "import sys; from engine.cli.main import main\n"
        "import engine.cli.ask, engine.cli.ingest, engine.cli.jobs, engine.cli.search\n"
        "import engine.cli.serve, engine.cli.bench, engine.cli.tune, engine.cli.router, engine.cli.compare\n"
        "print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
