"""`minibatch job PLATFORM PRESET … [-- options of train]`: prints the file that starts a training job there."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from pipeline.errors import Parser
from pipeline.training.jobs import gke, tpu_vm, vertex
from pipeline.training.jobs.job import Job

PLATFORMS: dict[str, Callable[[Job], str]] = {"gke": gke.render, "vertex": vertex.render, "tpu-vm": tpu_vm.render}


def main(arguments: list[str], parse: Callable[[str, list[str]], Any]) -> None:
    """Prints the job file. `parse` reads the words of `minibatch train`: a job with a wrong one is never started."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = vars(_parser().parse_args(arguments[:cut]))
    render, words = PLATFORMS[options.pop("platform")], arguments[cut + 1 :]
    parse("train", [options["preset"], *words])
    print(render(Job(**options, options=tuple(words))))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="minibatch job",
        usage="minibatch job {gke,vertex,tpu-vm} PRESET --name … --image … --bucket … [options] [-- options of train]",
        description="Prints the file that starts `minibatch train PRESET` there; docs/distribution.md says how to use "
        "it. It holds no secrets: the machines act as the service account that is named.",
        allow_abbrev=False,
    )
    parser.add_argument("platform", choices=PLATFORMS)
    parser.add_argument("preset")
    texts = {
        "name": "the job's name, and the run's",
        "image": "container image: the Dockerfile's target train",
        "bucket": "gs://BUCKET/FOLDER with records/; receives runs/",
        "workers": "machines (default: 1)",
        "machine": "machine type",
        "accelerator": "GPU or TPU type, as the platform spells it",
        "accelerators": "how many of them each machine has (default: 1)",
        "topology": "of a TPU slice on one host, like 2x4",
        "zone": "for tpu-vm",
        "account": "service account that may read and write the bucket",
    }
    for field in dataclasses.fields(Job):
        if field.name in texts:
            required = field.default is dataclasses.MISSING
            kind = {"type": int} if field.type is int else {}
            default = {} if required else {"default": field.default}
            parser.add_argument(f"--{field.name}", help=texts[field.name], required=required, **kind, **default)  # type: ignore[arg-type]
    return parser
