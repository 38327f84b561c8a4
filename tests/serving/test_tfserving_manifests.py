"""The compose file and the Kubernetes manifests, by the schemas of what reads them. None of them was run anywhere."""

import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serving.server.flags import parse

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "serving" / "tfserving"
KUBERNETES = list(yaml.safe_load_all((SETTINGS / "kubernetes.yaml").read_text()))
BY_KIND = {document["kind"]: document for document in KUBERNETES}
POD = BY_KIND["Deployment"]["spec"]["template"]
CONTAINERS = {c["name"]: c for c in [*POD["spec"]["initContainers"], *POD["spec"]["containers"]]}
COMPOSE = yaml.safe_load((SETTINGS / "compose.yaml").read_text())

WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
# The part of the Compose specification that is used here; nothing else may stand in the file.
COMPOSE_SCHEMA = {
    "type": "object",
    "required": ["name", "services", "volumes"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "oneOf": [{"required": ["image"]}, {"required": ["build"]}],
                "properties": {
                    "image": {"type": "string"},
                    "build": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"context": {"type": "string"}, "target": {"type": "string"}},
                    },
                    "depends_on": {
                        "type": "object",
                        "additionalProperties": {
                            "type": "object",
                            "required": ["condition"],
                            "properties": {
                                "condition": {
                                    "enum": ["service_started", "service_healthy", "service_completed_successfully"]
                                }
                            },
                        },
                    },
                    "entrypoint": WORDS,
                    "command": WORDS,
                    "volumes": {**WORDS, "items": {"type": "string", "pattern": "^[^:]+:/[^:]+(:ro|:rw)?$"}},
                    "ports": {**WORDS, "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
                    "healthcheck": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["test"],
                        "properties": {
                            "test": {**WORDS, "prefixItems": [{"enum": ["CMD", "CMD-SHELL", "NONE"]}]},
                            "interval": DURATION,
                            "timeout": DURATION,
                            "start_period": DURATION,
                            "retries": {"type": "integer"},
                        },
                    },
                    "deploy": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "resources": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "limits": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {
                                            "cpus": {"type": "string"},
                                            "memory": {"type": "string", "pattern": "^[0-9]+[bkmgBKMG]+$"},
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
                    "read_only": {"type": "boolean"},
                    "cap_drop": WORDS,
                    "security_opt": WORDS,
                },
            },
        },
    },
}
NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
# gateway.networking.k8s.io/v1, as far as it is used here.
ROUTE_SCHEMA = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "gateway.networking.k8s.io/v1"},
        "kind": {"const": "HTTPRoute"},
        "metadata": NAMED,
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "parentRefs": {"type": "array", "items": NAMED},
                "hostnames": WORDS,
                "rules": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "matches": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "method": {"enum": ["GET", "POST"]},
                                        "path": {
                                            "type": "object",
                                            "properties": {
                                                "type": {"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                                                "value": {"type": "string", "pattern": "^/"},
                                            },
                                        },
                                    },
                                },
                            },
                            "backendRefs": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["name", "port", "weight"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "name": {"type": "string"},
                                        "port": {"type": "integer"},
                                        "weight": {"type": "integer", "minimum": 0},
                                        "filters": {
                                            "type": "array",
                                            "items": {
                                                "type": "object",
                                                "required": ["type", "urlRewrite"],
                                                "additionalProperties": False,
                                                "properties": {
                                                    "type": {"const": "URLRewrite"},
                                                    "urlRewrite": {
                                                        "type": "object",
                                                        "required": ["path"],
                                                        "properties": {
                                                            "path": {
                                                                "type": "object",
                                                                "required": ["type", "replaceFullPath"],
                                                                "properties": {"type": {"const": "ReplaceFullPath"}},
                                                            }
                                                        },
                                                    },
                                                },
                                            },
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("document", KUBERNETES, ids=lambda document: document["kind"])
@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_every_manifest_holds_by_kubernetes_own_schema(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_found():
    wrong = json.loads(json.dumps(BY_KIND["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_the_kinds_are_those_that_serving_needs():
    assert list(BY_KIND) == [
        "PersistentVolumeClaim", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget",
        "NetworkPolicy",
    ]  # fmt: skip


def test_every_selector_finds_the_pods_and_every_reference_what_it_names():
    pods = POD["metadata"]["labels"]
    for selector in (
        BY_KIND["Deployment"]["spec"]["selector"]["matchLabels"],
        BY_KIND["Service"]["spec"]["selector"],
        BY_KIND["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        BY_KIND["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= pods.items()
    assert (
        BY_KIND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == BY_KIND["Deployment"]["metadata"]["name"]
    )
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    mounted = {mount["name"] for container in CONTAINERS.values() for mount in container["volumeMounts"]}
    assert mounted == set(volumes)
    claim = volumes["exports"]["persistentVolumeClaim"]["claimName"]
    assert claim == BY_KIND["PersistentVolumeClaim"]["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINERS["tfserving"]["ports"]}
    targets = {port["targetPort"]: port["port"] for port in BY_KIND["Service"]["spec"]["ports"]}
    allowed = {port["port"] for port in BY_KIND["NetworkPolicy"]["spec"]["ingress"][0]["ports"]}
    assert ports == targets == {"grpc": 8500, "rest": 8501}
    assert allowed == {8500, 8501}


def test_the_settings_that_the_pods_mount_are_made_from_the_files_here():
    made = yaml.safe_load((SETTINGS / "kustomization.yaml").read_text())
    (generated,) = made["configMapGenerator"]
    assert generated["name"] == POD["spec"]["volumes"][-1]["configMap"]["name"]
    assert all((SETTINGS / name).is_file() for name in [*generated["files"], *made["resources"]])
    replaced = {image["name"] for image in made["images"]}
    assert {CONTAINERS[name]["image"] for name in ("first-config", "live")} == replaced
    named = [flag.split("=")[1] for flag in CONTAINERS["tfserving"]["args"] if "/etc/serving/" in flag]
    assert {Path(path).name for path in named} == set(generated["files"])


def test_no_container_may_do_more_than_it_must():
    assert POD["spec"]["securityContext"]["runAsNonRoot"]
    for container in CONTAINERS.values():
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"]
        assert not confined["allowPrivilegeEscalation"]
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= container["resources"].keys()


def test_readiness_reads_the_body_since_the_status_page_is_200_without_a_version():
    probe = CONTAINERS["tfserving"]["readinessProbe"]["exec"]["command"][-1]
    assert "GET /v1/models/" in probe
    assert "grep -q AVAILABLE" in probe
    for name in ("startupProbe", "livenessProbe"):
        assert CONTAINERS["tfserving"][name]["grpc"] == {"port": 8500, "service": "PredictionService"}
    assert "--enable_grpc_healthcheck_service=true" in CONTAINERS["tfserving"]["args"]


def test_a_pod_ends_after_the_service_has_forgotten_it():
    (*_, seconds) = CONTAINERS["tfserving"]["lifecycle"]["preStop"]["exec"]["command"]
    assert 5 <= int(seconds) < POD["spec"]["terminationGracePeriodSeconds"]


def test_the_compose_file_holds_by_its_schema():
    jsonschema.Draft202012Validator(COMPOSE_SCHEMA).validate(COMPOSE)


def test_the_compose_file_s_services_share_the_volume_that_it_declares_and_build_what_there_is():
    used = {word.split(":")[0] for service in COMPOSE["services"].values() for word in service["volumes"]}
    assert {name for name in used if not name.startswith(".")} == set(COMPOSE["volumes"])
    assert f" AS {COMPOSE['services']['live']['build']['target']}\n" in (ROOT / "Dockerfile").read_text()
    assert set(COMPOSE["services"]["tfserving"]["depends_on"]) <= set(COMPOSE["services"])
    local = [word.split(":")[0] for word in COMPOSE["services"]["tfserving"]["volumes"] if "tfserving" in word]
    assert [(ROOT / path).is_dir() for path in local] == [True]


SERVERS = {
    "compose": COMPOSE["services"]["tfserving"]["command"],
    "kubernetes": CONTAINERS["tfserving"]["args"],
}
FOLLOWERS = {
    "compose": COMPOSE["services"]["live"]["command"],
    "kubernetes": CONTAINERS["live"]["args"],
    "kubernetes, first": CONTAINERS["first-config"]["args"],
}


@pytest.mark.parametrize("where", SERVERS)
def test_the_embedded_server_knows_every_flag_that_tf_serving_is_given(where):
    flags, unknown = parse(SERVERS[where])
    assert unknown == []
    assert flags.model_config_file_poll_wait_seconds == 5
    assert flags.allow_version_labels_for_unavailable_models


@pytest.mark.parametrize("where", FOLLOWERS)
def test_the_follower_s_words_are_ones_that_the_command_takes(where):
    from pipeline.release.operations import _parser

    name, *words = FOLLOWERS[where]
    given = _parser(name).parse_args(words)
    assert given.base_path == "/models"
    assert given.output.name == "models.config"


def test_both_use_the_image_of_the_dockerfile():
    image = re.search(r"FROM (tensorflow/serving:\S+) AS tfserving", (ROOT / "Dockerfile").read_text())[1]
    assert COMPOSE["services"]["tfserving"]["image"] == CONTAINERS["tfserving"]["image"] == image


def test_the_route_holds_by_its_schema_and_every_share_ends_at_a_label():
    route = yaml.safe_load((SETTINGS / "canary-route.yaml").read_text())
    jsonschema.Draft202012Validator(ROUTE_SCHEMA).validate(route)
    (rule,) = route["spec"]["rules"]
    asked = rule["matches"][0]["path"]["value"]
    paths = [ref["filters"][0]["urlRewrite"]["path"]["replaceFullPath"] for ref in rule["backendRefs"]]
    assert paths == [asked.replace(":", f"/labels/{label}:") for label in ("stable", "canary")]
    assert sum(ref["weight"] for ref in rule["backendRefs"]) == 100
    assert {ref["name"] for ref in rule["backendRefs"]} == {BY_KIND["Service"]["metadata"]["name"]}
