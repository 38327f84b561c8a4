"""A Cloud TPU VM of one host: a shell script that asks for it in the queue; the VM trains as soon as it is there."""

import shlex

from pipeline.errors import USAGE, UserError
from pipeline.training.jobs.job import ROOT, Job

RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
ONE_HOST = ("1", "4", "8")  # what follows the kind: chips, or cores of v5p
HERE = "/mnt/disks/work"  # on the VM; the bucket is copied, since the VM has no driver to mount it
SECONDS_BETWEEN_COPIES = 300


def render(job: Job) -> str:
    """For `bash FILE`, where gcloud is set up."""
    kind, _, size = job.accelerator.partition("-")
    if kind not in RUNTIMES or size not in ONE_HOST or not job.zone:
        raise UserError(
            f"--accelerator {job.accelerator!r} --zone {job.zone!r}: give a zone, and one of "
            f"{', '.join(RUNTIMES)} with {', '.join(f'-{size}' for size in ONE_HOST)}: one host.",
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
    words = job.words(strategy="tpu")
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
