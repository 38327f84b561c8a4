"""A Cloud TPU VM of one host: a shell script that asks for it in the queue; the VM trains as soon as it is there."""

import dataclasses
import shlex

from pipeline.errors import USAGE, UserError
from pipeline.training.jobs.job import ROOT, Job

RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
HERE = "/mnt/disks/work"  # on the VM; the bucket is copied, since the VM has no driver to mount it
SECONDS_BETWEEN_COPIES = 300


def render(job: Job) -> str:
    """For `bash FILE`, where gcloud is set up."""
    kind = job.accelerator.partition("-")[0]
    if kind not in RUNTIMES or not job.zone:
        raise UserError(
            f"--accelerator {job.accelerator!r} --zone {job.zone!r}: give a zone, and one of "
            f"{', '.join(f'{name}-N' for name in RUNTIMES)}.",
            USAGE,
        )
    asked = [
        *("gcloud", "compute", "tpus", "queued-resources", "create", job.name),
        *(f"--node-id={job.name}", f"--zone={job.zone}", f"--accelerator-type={job.accelerator}"),
        f"--runtime-version={RUNTIMES[kind]}",
        *([f"--service-account={job.account}"] if job.account else []),
    ]
    return (
        "#!/bin/bash\nset -eu\nscript=$(mktemp)\ntrap 'rm -f \"$script\"' EXIT\n"
        f"cat > \"$script\" <<'STARTUP'\n{startup(job)}STARTUP\n"
        f'{shlex.join(asked)} --metadata-from-file=startup-script="$script"\n'
    )


def startup(job: Job) -> str:
    """What the VM does when it starts, also after it was taken away and given back: fetch, train, bring back."""
    words = dataclasses.replace(job, topology=job.topology or "1x1").words()  # a TPU in any case
    fetch = shlex.join(["gcloud", "storage", "rsync", "--recursive", job.bucket, HERE])
    bring = shlex.join(["gcloud", "storage", "rsync", "--recursive", HERE, job.bucket])
    # A TPU's devices are open to the privileged only.
    train = ["docker", "run", "--rm", "--privileged", "--net=host", "-v", f"{HERE}:{ROOT}", job.image, *words]
    return (
        "#!/bin/bash\nset -u\n"
        f"mkdir -p {HERE}\n{fetch} || exit 1\nchown -R 1000 {HERE}\n"
        # A copy made while a checkpoint is written may be half: whoever resumes passes it over.
        f"( while sleep {SECONDS_BETWEEN_COPIES}; do {bring}; done ) &\ncopying=$!\n"
        f"{shlex.join(train)}\ncode=$?\nkill $copying\n{bring}\nexit $code\n"
    )
