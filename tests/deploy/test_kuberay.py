"""The Kubernetes files: what a strict API server would take, and what they must never say."""

from __future__ import annotations

import json
import re
from importlib.metadata import version

import pytest
from deploy_files import DEPLOY, KUBERNETES, check_serve_config, load, pod_templates, problems, ray_service
from jsonschema import Draft202012Validator

from engine.config import parse_config

FILES = sorted((DEPLOY / "kuberay").glob("*.yaml"))
TEMPLATES = pod_templates(ray_service())
WORKERS = {name: template for name, template in TEMPLATES.items() if name != "head"}


def serve_config():
    (made,) = load(ray_service()["spec"]["serveConfigV2"])
    return made


def container(template):
    (only,) = template["spec"]["containers"]
    return only


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_manifest_is_what_its_schema_allows(path):
    manifests = load(path.read_text())
    assert manifests
    for manifest in manifests:
        assert problems(manifest) == []


def test_schemas_are_schemas_themselves():
    Draft202012Validator.check_schema(KUBERNETES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(upgradeStrategey={}), "upgradeStrategey"),
        (lambda spec: spec["rayClusterConfig"]["authOptions"].update(mode="none"), "'none' is not one of"),
        (lambda spec: spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not"),
        (
            lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].pop("maxReplicas"),
            "'maxReplicas' is a required",
        ),
        (
            lambda spec: container(spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]).update(enviroment=[]),
            "enviroment",
        ),
        (lambda spec: spec["upgradeStrategy"].update(type=None), "None is not one of"),
    ],
)
def test_a_mistake_is_refused_by_the_schema(change, said):
    service = ray_service()
    change(service["spec"])
    assert any(said in problem for problem in problems(service)), problems(service)


def test_incremental_upgrade_that_a_comment_offers_is_valid():
    text = (DEPLOY / "kuberay" / "ray-service.switchyard.yaml").read_text()
    (options,) = re.findall(r"# postgresql:\s+clusterUpgradeOptions: (\{.*\})", text)
    service = ray_service()
    strategy = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": load(options)[0]}
    service["spec"]["upgradeStrategy"] = strategy
    assert problems(service) == []


def test_settings_of_the_service_are_taken_by_ray_serve_and_by_the_engine():
    config = serve_config()
    check_serve_config(config)
    (application,) = config["applications"]
    parse_config(application["args"], "ray-service.switchyard.yaml")
    names = {deployment["name"] for deployment in application["deployments"]}
    assert names <= {"Gateway", "Retriever", "Generator", "Adapters"}
    # Adapters exists beside several generators only.
    assert application["args"]["generator"]["num_replicas"] > 1


def test_ray_is_the_version_that_is_pinned():
    assert ray_service()["spec"]["rayClusterConfig"]["rayVersion"] == version("ray")


def test_head_takes_no_work_and_workers_hold_what_the_deployments_ask_for():
    cluster = ray_service()["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    args = serve_config()["applications"][0]["args"]
    gpus = sum(
        group["replicas"] * int(container(group["template"])["resources"]["limits"]["nvidia.com/gpu"])
        for group in cluster["workerGroupSpecs"]
    )
    assert gpus == args["generator"]["num_replicas"]
    assert args["generator"]["num_gpus"] + args["retriever"]["num_gpus"] <= 1
    offered = {
        name
        for group in cluster["workerGroupSpecs"]
        for name in json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
    }
    asked = {
        name
        for deployment in serve_config()["applications"][0]["deployments"]
        for name in deployment.get("ray_actor_options", {}).get("resources", {})
    }
    assert asked <= offered


def test_the_volume_of_the_knowledge_base_is_on_the_group_that_runs_the_retriever_alone():
    on_volume = [
        name
        for name, template in TEMPLATES.items()
        if any("persistentVolumeClaim" in volume for volume in template["spec"]["volumes"])
    ]
    assert on_volume == ["store"]
    (group,) = [g for g in ray_service()["spec"]["rayClusterConfig"]["workerGroupSpecs"] if g["groupName"] == "store"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 1)
    data = serve_config()["applications"][0]["args"]["data"]
    for template in WORKERS.values():
        assert data in {mount["mountPath"] for mount in container(template)["volumeMounts"]}


def test_state_of_the_cluster_outlives_its_head_and_every_call_needs_a_token():
    cluster = ray_service()["spec"]["rayClusterConfig"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["authOptions"]["secretName"]
    assert "secretKeyRef" in cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_pods_have_no_rights_and_write_to_volumes_only(template):
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.get("hostNetwork") and not spec.get("hostPID") and not spec.get("hostIPC")
    security = container(template)["securityContext"]
    assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_pods_are_probed_bounded_and_have_shared_memory(template):
    only = container(template)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert only[probe]["timeoutSeconds"] > 0
    assert only["resources"]["requests"]["cpu"]
    assert only["resources"]["limits"]["memory"] == only["resources"]["requests"]["memory"]
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in only["volumeMounts"]} == set(volumes)
    (shared,) = [mount["name"] for mount in only["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    assert volumes[shared]["emptyDir"]["medium"] == "Memory"
    assert all(volume["emptyDir"]["sizeLimit"] for volume in volumes.values() if "emptyDir" in volume)


@pytest.mark.parametrize("template", WORKERS.values(), ids=WORKERS)
def test_workers_end_their_streams_before_they_go(template):
    waits = int(re.search(r"sleep (\d+)", container(template)["lifecycle"]["preStop"]["exec"]["command"][-1])[1])
    deployments = serve_config()["applications"][0]["deployments"]
    longest = max(each.get("graceful_shutdown_timeout_s", 0) for each in deployments)
    assert template["spec"]["terminationGracePeriodSeconds"] > waits >= longest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_secrets_stand_by_reference_only_and_images_have_versions(path):
    text = path.read_text()
    for manifest in load(text):
        assert manifest["kind"] not in {"Secret", "ConfigMap"}
    for image in re.findall(r"^\s*image:\s*(\S+)", text, re.MULTILINE):
        assert re.search(r":\d", image) and not image.endswith(":latest"), image
    # A value beside a name that speaks of a secret.
    assert not re.search(r"name: \S*(TOKEN|PASSWORD|SECRET|KEY)\S*,\s*value:", text)
    assert not re.search(r"://[^/\s]+:[^@\s]+@", text)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_no_dashboard_is_opened_to_everybody(path):
    assert not re.search(r"dashboard-host\S*\s*[:=]?\s*[\"']?0\.0\.0\.0", path.read_text())


def test_network_policy_lets_in_the_edge_the_operator_prometheus_and_the_pods_themselves():
    (policy,) = load((DEPLOY / "kuberay" / "network-policy.yaml").read_text())
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for template in TEMPLATES.values():
        assert spec["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    open_to = {}
    for rule in spec["ingress"]:
        (peer,) = rule["from"]
        who = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "itself")
        assert peer.get("podSelector") or who != "itself"
        open_to[who] = {port["port"] for port in rule.get("ports", ())}
    assert open_to == {
        "itself": set(),
        "ingress-nginx": {8000},
        "kuberay-operator": {8265, 52365, 8000},
        "monitoring": {8080, 8000},
    }
    for rule in spec["egress"]:
        for peer in rule["to"]:
            if "ipBlock" in peer:
                assert "169.254.0.0/16" in peer["ipBlock"]["except"]


def test_budget_covers_the_workers_by_a_number_of_pods():
    manifests = {each["kind"]: each for each in load((DEPLOY / "kuberay" / "support.yaml").read_text())}
    budget = manifests["PodDisruptionBudget"]["spec"]
    # Of pods that a custom resource owns Kubernetes takes no maxUnavailable.
    assert isinstance(budget["minAvailable"], int) and "maxUnavailable" not in budget
    for template in WORKERS.values():
        assert budget["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert budget["selector"]["matchLabels"]["app.kubernetes.io/component"] not in str(TEMPLATES["head"]["metadata"])
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for template in TEMPLATES.values()
        for volume in template["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {manifests["PersistentVolumeClaim"]["metadata"]["name"]}
    assert {t["spec"]["serviceAccountName"] for t in TEMPLATES.values()} == {
        manifests["ServiceAccount"]["metadata"]["name"]
    }
