"""Kubernetes on Google's engine: an Indexed Job, and the headless Service by which its workers find each other."""

import json
from typing import Any

from pipeline.training.jobs.job import PORT, ROOT, Job

PERMANENT = [2, 65, 66, 78]  # exit codes that the same command would meet again


def render(job: Job) -> str:
    """For `kubectl apply -f`: JSON, which is YAML."""
    items = [service(job), indexed_job(job)] if job.workers > 1 else [indexed_job(job)]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2)


def service(job: Job) -> dict[str, Any]:
    """Gives each worker a name: NAME-0.NAME, NAME-1.NAME, …, known before it is ready, since all wait for all."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": job.name},
            "ports": [{"name": "workers", "port": PORT}],
        },
    }


def indexed_job(job: Job) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.workers,
            "parallelism": job.workers,
            # One that is lost takes all others down with it; each of them counts.
            "backoffLimit": 10 * job.workers,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "train", "operator": "In", "values": PERMANENT},
                    },
                ]
            },
            "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": _pod(job)},
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    chips = {"google.com/tpu" if job.topology else "nvidia.com/gpu": job.accelerators} if job.accelerator else {}
    nodes = {"node.kubernetes.io/instance-type": job.machine} if job.machine else {}
    if job.topology:
        nodes["cloud.google.com/gke-tpu-accelerator"] = job.accelerator
        nodes["cloud.google.com/gke-tpu-topology"] = job.topology
    elif job.accelerator:
        nodes["cloud.google.com/gke-accelerator"] = job.accelerator
    mount = ["implicit-dirs", "uid=1000", "gid=1000", *([f"only-dir={job.folder}"] if job.folder else [])]
    bucket = {"bucketName": job.bucket_name, "mountOptions": ",".join(mount)}
    container = {
        "name": "train",
        "image": job.image,
        "args": [word.replace("$(", "$$(") for word in job.words()],  # not a variable of Kubernetes
        "env": _environment(job),
        "volumeMounts": [{"name": "work", "mountPath": ROOT}],
        **({"resources": {"requests": chips, "limits": chips}} if chips else {}),
        **({"ports": [{"containerPort": PORT}]} if job.workers > 1 else {}),
        # A TPU's devices are open to the privileged only.
        "securityContext": {"privileged": True} if job.topology else _UNPRIVILEGED,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "containers": [container],
        "volumes": [{"name": "work", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket}}],
        **({"subdomain": job.name} if job.workers > 1 else {}),
        **({"serviceAccountName": job.account} if job.account else {}),
        **({"nodeSelector": nodes} if nodes else {}),
    }


_UNPRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
}


def _environment(job: Job) -> list[dict[str, Any]]:
    """TF_CONFIG with this worker's number, which Kubernetes puts in: a variable may name an earlier one."""
    if job.workers == 1:
        return []
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    addresses = [f"{job.name}-{i}.{job.name}:{PORT}" for i in range(job.workers)]
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": "$(WORKER)"}}
    return [
        {"name": "WORKER", "valueFrom": {"fieldRef": index}},
        {"name": "TF_CONFIG", "value": json.dumps(config)},
    ]
