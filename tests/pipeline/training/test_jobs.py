"""Claims about job files, against the fields that the platforms' API references list. None was submitted anywhere."""

import json
import re
import shlex
import subprocess

import pytest

from pipeline import __main__ as command
from pipeline.arguments import parse
from pipeline.errors import USAGE, UserError
from pipeline.training import cluster, jobs
from pipeline.training.jobs import gke, tpu_vm, vertex
from pipeline.training.jobs.job import Job

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # a label of RFC 1035, as Services want it
COUNT = re.compile(r"[0-9]+")
WORKER = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

# A shape: a type, a pattern, a set of values, [shape of each], or {field: shape}; a field with ? may be missing.
RESOURCES = {"nvidia.com/gpu?": int, "google.com/tpu?": int}
CONTAINER = {
    "name": NAME,
    "image": str,
    "args": [str],
    "env": [{"name": re.compile("[A-Z_]+"), "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": {WORKER}}}}],
    "volumeMounts": [{"name": NAME, "mountPath": re.compile("/.*")}],
    "resources?": {"requests": RESOURCES, "limits": RESOURCES},
    "ports?": [{"containerPort": int}],
    "securityContext": {
        "privileged?": bool,
        "allowPrivilegeEscalation?": bool,
        "capabilities?": {"drop": [str]},
        "runAsNonRoot?": bool,
        "runAsUser?": int,
    },
}
POD = {
    "restartPolicy": {"Never"},  # podFailurePolicy wants it
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [
        {
            "name": NAME,
            "csi": {
                "driver": {"gcsfuse.csi.storage.gke.io"},
                "volumeAttributes": {"bucketName": str, "mountOptions": str},
            },
        }
    ],
    "subdomain?": NAME,
    "serviceAccountName?": str,
    "nodeSelector?": {
        "node.kubernetes.io/instance-type?": str,
        "cloud.google.com/gke-accelerator?": str,
        "cloud.google.com/gke-tpu-accelerator?": str,
        "cloud.google.com/gke-tpu-topology?": str,
    },
}
JOB = {
    "apiVersion": {"batch/v1"},
    "kind": {"Job"},
    "metadata": {"name": NAME},
    "spec": {
        "completionMode": {"Indexed"},
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": {"FailJob", "Ignore", "Count", "FailIndex"},
                    "onExitCodes?": {"containerName": {"train"}, "operator": {"In", "NotIn"}, "values": [int]},
                    "onPodConditions?": [{"type": str, "status": {"True", "False", "Unknown"}}],
                }
            ]
        },
        "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": {"true"}}}, "spec": POD},
    },
}
SERVICE = {
    "apiVersion": {"v1"},
    "kind": {"Service"},
    "metadata": {"name": NAME},
    "spec": {
        "clusterIP": {"None"},
        "publishNotReadyAddresses": bool,
        "selector": {"job-name": NAME},
        "ports": [{"name": NAME, "port": int}],
    },
}
CUSTOM_JOB_SPEC = {
    "workerPoolSpecs": [
        {
            "machineSpec": {
                "machineType": str,
                "acceleratorType?": re.compile("(NVIDIA|TPU)_[A-Z0-9_]+"),
                "acceleratorCount?": int,
                "tpuTopology?": str,
            },
            "replicaCount": COUNT,
            "containerSpec": {"imageUri": str, "args": [str]},
        }
    ],
    "scheduling": {"restartJobOnWorkerRestart": bool},
    "serviceAccount?": str,
}


def misfits(value, shape, at: str = "") -> list[str]:
    """What in `value` is not as `shape` has it."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{at}: no object"]
        fields = {name.rstrip("?"): inner for name, inner in shape.items()}
        missing = [name for name in shape if not name.endswith("?") and name not in value]
        found = [f"{at}.{name}: missing" for name in missing]
        found += [f"{at}.{name}: unknown" for name in value if name not in fields]
        return found + [m for n in value if n in fields for m in misfits(value[n], fields[n], f"{at}.{n}")]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{at}: no list"]
        return [m for i, each in enumerate(value) for m in misfits(each, shape[0], f"{at}[{i}]")]
    if isinstance(shape, set):
        fits = value in shape
    elif isinstance(shape, re.Pattern):
        fits = isinstance(value, str) and shape.fullmatch(value) is not None
    else:
        fits = type(value) is shape
    return [] if fits else [f"{at}: {value!r}"]


def job(**changes) -> Job:
    image = "europe-docker.pkg.dev/project/images/minibatch:1"
    return Job(**{"name": "m1", "image": image, "bucket": "gs://some-bucket/mb", "preset": "movielens", **changes})


CPUS, GPUS = {"workers": 3, "machine": "n2-standard-16"}, {"accelerator": "nvidia-l4", "accelerators": 2}
TPU = {"accelerator": "tpu-v5-lite-podslice", "accelerators": 8, "topology": "2x4"}


@pytest.mark.parametrize("changes", [{}, CPUS, GPUS, {**CPUS, **GPUS}, TPU, {"account": "trainer"}])
def test_gke_gets_a_list_of_a_service_and_an_indexed_job(changes):
    document = json.loads(gke.render(job(**changes)))
    *services, indexed = document.pop("items")
    assert document == {"apiVersion": "v1", "kind": "List"}
    assert misfits(indexed, JOB) == []
    assert [misfits(service, SERVICE) for service in services] == [[]] * (changes.get("workers", 1) > 1)


def test_the_shapes_see_what_does_not_fit():
    document = gke.indexed_job(job(**CPUS))
    document["spec"]["parallelism"] = "3"
    document["spec"]["parallel"] = 3
    del document["spec"]["template"]["spec"]["containers"][0]["image"]
    document["metadata"]["name"] = "M_1"
    assert misfits(document, JOB) == [
        ".metadata.name: 'M_1'",
        ".spec.parallel: unknown",
        ".spec.parallelism: '3'",
        ".spec.template.spec.containers[0].image: missing",
    ]


def test_each_worker_on_kubernetes_reads_its_own_place():
    indexed, headless = gke.indexed_job(job(**CPUS))["spec"], gke.service(job(**CPUS))
    pod = indexed["template"]["spec"]
    container = pod["containers"][0]
    (number, config) = container["env"]  # the second may name the first
    assert f"$({number['name']})" in config["value"]
    for i in range(indexed["completions"]):
        addresses, me = cluster.place(config["value"].replace("$(WORKER)", str(i)))
        assert me == f"worker:{i}"
        # NAME-i is the pod's host name, resolved by the service of its subdomain
        assert addresses[me] == f"m1-{i}.{pod['subdomain']}:{container['ports'][0]['containerPort']}"
    assert pod["subdomain"] == headless["metadata"]["name"] == headless["spec"]["selector"]["job-name"]
    assert headless["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    assert (indexed["completions"], indexed["parallelism"]) == (3, 3)


def test_a_word_that_looks_like_a_variable_of_kubernetes_stays_a_word():
    made = gke.indexed_job(job(options=("--data.path", "$(TF_CONFIG)/x$y")))
    assert "$$(TF_CONFIG)/x$y" in made["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("changes", [{}, {"workers": 4}, {"accelerator": "NVIDIA_L4", "accelerators": 1}])
def test_vertex_gets_a_custom_job_spec_whose_first_pool_is_one_chief(changes):
    spec = json.loads(vertex.render(job(machine="g2-standard-8", **changes)))
    assert misfits(spec, CUSTOM_JOB_SPEC) == []
    counts = [int(pool["replicaCount"]) for pool in spec["workerPoolSpecs"]]
    assert counts[0] == 1
    assert sum(counts) == changes.get("workers", 1)
    words = [pool["containerSpec"]["args"] for pool in spec["workerPoolSpecs"]]
    assert words == [words[0]] * len(words)
    assert words[0][words[0].index("--run.root") + 1] == "/gcs/some-bucket/mb"


def test_vertex_says_which_tpu_by_the_machine_and_its_topology():
    spec = vertex.custom_job_spec(job(machine="ct5lp-hightpu-4t", **TPU))
    assert misfits(spec, CUSTOM_JOB_SPEC) == []
    machine = {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x4"}
    assert [pool["machineSpec"] for pool in spec["workerPoolSpecs"]] == [machine]


def test_vertex_wants_a_machine_and_a_tpu_vm_a_zone_and_a_known_kind():
    for render, given in (
        (vertex.render, job()),
        (tpu_vm.render, job(accelerator="v5litepod-8")),
        (tpu_vm.render, job(accelerator="v9-8", zone="europe-west4-b")),
        (tpu_vm.render, job(accelerator="v5litepod-16", zone="europe-west4-b")),  # two hosts
    ):
        with pytest.raises(UserError, match=r"give a zone|wants a machine type") as raised:
            render(given)
        assert raised.value.code == USAGE


def test_a_tpu_vm_is_asked_for_in_the_queue_with_a_startup_script_that_trains(tmp_path):
    wild = 'it\'s; $(touch x) `y` "z"'
    vm = job(accelerator="v5litepod-8", zone="europe-west4-b", options=("--data.path", wild))
    fake = tmp_path / "gcloud"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\ncat "${@: -1:1}" 2>/dev/null || cat "${@##*=}" 2>/dev/null\n')
    fake.chmod(0o755)
    script = tpu_vm.render(vm)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert said[:5] == ["compute", "tpus", "queued-resources", "create", "m1"]
    assert {"--node-id=m1", "--zone=europe-west4-b", "--accelerator-type=v5litepod-8"} <= set(said)
    assert tpu_vm.startup(vm) in done.stdout
    assert list(tmp_path.iterdir()) == [fake]  # nothing ran, and nothing is left
    assert subprocess.run(["bash", "-n"], input=tpu_vm.startup(vm), text=True).returncode == 0
    (line,) = [line for line in tpu_vm.startup(vm).splitlines() if line.startswith("docker run")]
    words = shlex.split(line)
    assert words[words.index(vm.image) + 1 :] == [
        *("train", "movielens", "--data.path", wild),
        *("--run.name", "m1", "--run.root", "/srv/work", "--train.strategy", "tpu"),
    ]


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ({}, "cpu"),
        ({**GPUS, "accelerators": 1}, "gpu"),  # which stops where TensorFlow sees none
        ({**GPUS, "accelerators": 2}, "mirrored"),
        (CPUS, "multi_worker"),
        ({**CPUS, **GPUS}, "multi_worker"),
        (TPU, "tpu"),
    ],
)
def test_the_strategy_follows_from_the_machines(changes, strategy):
    made = job(**changes, options=("--train.strategy", "gpu", "--run.root", "elsewhere"))
    config = parse("train", made.words()[1:])[1]  # ours count, since they come last
    assert config.train.strategy == strategy
    assert (config.run.name, str(config.run.root)) == ("m1", "/srv/work")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", name) for name in ("", "A", "a_b", "1a", "a-", "a" * 41, "a.b", "a\nb", "é")),
        *(("image", image) for image in ("", "a b", "a;b", "$(x)", "-a", "a:b:c:d", "a@sha256:12", "a\n")),
        *(("bucket", bucket) for bucket in ("b/x", "gs://", "gs://A", "gs://bkt/../x", "gs://bkt/a b", "s3://bkt")),
        *(("machine", machine) for machine in ("n2 standard", "n2_standard", "-x", "N2")),
        *(("accelerator", name) for name in ("v5 lite", "a;b", "--x")),
        *(("topology", shape) for shape in ("2", "2x", "ax2", "2x2x2x2")),
        *(("zone", zone) for zone in ("europe", "europe-west4", "x;y")),
        *(("account", account) for account in ("A", "x y", "-x")),
        *(("workers", count) for count in (0, -1, 1001)),
        *(("accelerators", count) for count in (-1, 0, 17)),
        *(("options", (word,)) for word in ("a\nSTARTUP\nreboot", "a\0", "\x1b[0m")),
    ],
)
def test_what_could_be_no_name_there_is_refused_in_one_line(field, value):
    with pytest.raises(UserError) as raised:
        job(**{field: value})
    assert raised.value.code == USAGE
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"topology": "4x4"}, {"accelerators": 4}])
def test_a_slice_of_several_hosts_is_refused_with_the_reason(changes):
    with pytest.raises(UserError, match="a TPU job has one host here"):
        job(**{**TPU, **changes})


NEEDED = ("--name", "m1", "--image", "europe-docker.pkg.dev/p/i:1", "--bucket", "gs://some-bucket")


def test_the_command_prints_the_file_and_nothing_of_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "planted-canary")
    more = ("--machine", "n2-standard-8", "--zone", "europe-west4-b", "--accelerator", "v6e-4")
    for platform in jobs.PLATFORMS:
        given = (*more, "--accelerators", "4", "--account", "trainer", "--", "--train.epochs", "3")
        command.main(["job", platform, "movielens", *NEEDED, *given])
        said = capsys.readouterr()
        assert "--train.epochs" in said.out
        assert said.err == ""
        assert "canary" not in said.out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("gke",), "required: preset, --name, --image, --bucket"),
        (("moon", "movielens", *NEEDED), "invalid choice: 'moon'"),
        (("gke", "moovielens", *NEEDED), "Unknown preset 'moovielens'"),
        (("gke", "movielens", *NEEDED, "--", "--train.bach-size", "3"), "--train.batch-size"),
        (("gke", "movielens", *NEEDED, "--train.epochs", "3"), "unrecognized arguments: --train.epochs 3"),
        (("gke", "movielens", *NEEDED, "--workers", "two"), "invalid int value"),
        (("gke", "movielens", *NEEDED, "--", "--fresh"), "--fresh: a job that is started again"),
    ],
)
def test_a_wrong_command_prints_no_file(words, what, capsys):
    with pytest.raises(UserError, match=re.escape(what)) as raised:
        jobs.main(list(words), parse)
    assert raised.value.code == USAGE
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("options", ["--password=planted", "--password planted", "--x=https://u:planted@host"])
def test_a_job_file_holds_no_secret(options, capsys):
    with pytest.raises(UserError, match=r"\*\*\*.*in the clear") as raised:
        jobs.main(["gke", "movielens", *NEEDED, "--", f"--data.runner-options={options}"], parse)
    assert "planted" not in str(raised.value)
    assert capsys.readouterr().out == ""
