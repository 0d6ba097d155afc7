"""The files of deploy/, and the schemas that they are held against."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
HERE = Path(__file__).parent


class _UniqueKeys(yaml.SafeLoader):
    """A key that stands twice is an error, as it is for kubectl."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    if len({*keys}) < len(keys):
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key stands twice among {keys}")
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text."""
    return list(yaml.load_all(text, Loader=_UniqueKeys))


KUBERNETES = json.loads((HERE / "kubernetes.schema.json").read_text())
RAY_SERVICE = yaml.safe_load((HERE / "rayservice.schema.yaml").read_text())
_REGISTRY = Registry().with_resource("kubernetes", Resource.from_contents(KUBERNETES))


def problems(manifest: dict[str, Any]) -> list[str]:
    """What a strict API server would refuse, empty where nothing."""
    if manifest["kind"] == "RayService":
        schema = RAY_SERVICE
    else:
        schema = {"$schema": KUBERNETES["$schema"], "$ref": f"kubernetes#/$defs/{manifest['kind']}"}
    found = Draft202012Validator(schema, registry=_REGISTRY).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def ray_service() -> dict[str, Any]:
    """The RayService, anew for each caller."""
    (made,) = load((DEPLOY / "kuberay" / "ray-service.switchyard.yaml").read_text())
    return json.loads(json.dumps(made))


def pod_templates(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates by group; the head's is "head"."""
    cluster = service["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}


def check_serve_config(raw: dict[str, Any]) -> None:
    """Raises what `serve deploy` would: pydantic.ValidationError."""
    with warnings.catch_warnings():
        # Ray's own use of pydantic is deprecated.
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(raw)
