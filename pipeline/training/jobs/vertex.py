"""Vertex AI: a CustomJobSpec. The platform sets TF_CONFIG itself, the first pool being the chief."""

import json
from typing import Any

from pipeline.errors import USAGE, UserError
from pipeline.training.jobs.job import Job


def render(job: Job) -> str:
    """For `gcloud ai custom-jobs create --region=… --display-name=… --config=FILE`: JSON, which is YAML."""
    return json.dumps(custom_job_spec(job), indent=2)


def custom_job_spec(job: Job) -> dict[str, Any]:
    if not job.machine:
        raise UserError("--machine: Vertex AI wants a machine type, like n2-standard-16.", USAGE)
    pools = [_pool(job, 1), *([_pool(job, job.workers - 1)] if job.workers > 1 else [])]
    return {
        "workerPoolSpecs": pools,
        # A worker that comes back alone would meet others that have left.
        "scheduling": {"restartJobOnWorkerRestart": job.workers > 1},
        **({"serviceAccount": job.account} if job.account else {}),
    }


def _pool(job: Job, replicas: int) -> dict[str, Any]:
    machine: dict[str, Any] = {"machineType": job.machine}
    if job.topology:  # the machine type says which TPU
        machine["tpuTopology"] = job.topology
    elif job.accelerator:
        machine |= {"acceleratorType": job.accelerator, "acceleratorCount": job.accelerators}
    # Vertex AI mounts every bucket that the account may read under /gcs.
    root = f"/gcs/{job.bucket.removeprefix('gs://')}"
    return {
        "machineSpec": machine,
        "replicaCount": str(replicas),  # an int64, which JSON spells as a string
        "containerSpec": {"imageUri": job.image, "args": job.words(root)},
    }
