"""What is live as a models.config of the real TF Serving: specific versions, and the labels `stable` and `canary`.

TF Serving refuses a whole config when a label that is in use moves to a version that is not available yet, and it looks
at the labels before it loads anything. So a version is named first, and its label moves in a later config, when the
server says that it is available; `follow` writes both. A label that nobody used may name any version, if the server
runs with --allow_version_labels_for_unavailable_models, without which no config with labels can be used at a start.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline import manifest
from pipeline.errors import MISSING, UserError
from pipeline.release import live
from pipeline.release.access import OPEN, Access
from pipeline.release.live import Live
from pipeline.release.standing import server

log = logging.getLogger(__name__)

NOTE = "# labels in use: "
Labels = dict[str, int]


def labels(wanted: Live) -> Labels:
    return {"stable": wanted.stable} | ({} if wanted.canary is None else {"canary": wanted.canary})


def next_config(wanted: Live, used: Labels, available: set[int]) -> tuple[list[int], Labels]:
    """The versions and labels that the server will accept now, on the way to `wanted`; `used` are its labels."""
    targets = {}
    for label, target in labels(wanted).items():
        if target in available or used.get(label) == target:
            targets[label] = target
        elif label in used:
            targets[label] = used[label]
    return list(dict.fromkeys([*wanted.versions, *targets.values()])), targets


def standing(root: Path) -> dict[str, Live]:
    """What is live of each model under the serving root. Raises UserError when there is no such folder."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; --root names the one that holds the models.", MISSING)
    found = {path.name: live.current(path) for path in sorted(root.iterdir()) if path.name[0] != "." and path.is_dir()}
    return {name: state for name, state in found.items() if state is not None}


def config(
    root: Path,
    base_path: str,
    used: Mapping[str, Labels],
    address: str | None = None,
    access: Access = OPEN,
) -> tuple[str, bool]:
    """The text of models.config, and whether nothing is left to move. Without `address` (REST) it is where all should
    end, which is what a server can be started with. Raises UserError when the server does not answer."""
    blocks, noted, settled = [], {}, True
    for name, wanted in standing(root).items():
        versions, targets = wanted.versions, labels(wanted)
        if address is not None:
            states = server(address, name, access)
            available = {version for version, state in states.items() if state.startswith("AVAILABLE")}
            versions, targets = next_config(wanted, used.get(name, {}), available)
        settled &= (versions, targets) == (wanted.versions, labels(wanted))
        noted[name] = targets
        blocks.append(_block(name, f"{base_path.rstrip('/')}/{name}", versions, targets))
    text = "".join([f"{NOTE}{json.dumps(noted)}\n", "model_config_list {\n", *blocks, "}\n"])
    return text, settled


def follow(
    root: Path,
    base_path: str,
    output: Path,
    address: str | None,
    every: float | None,
    sleep: Callable[[float], None] = time.sleep,
    access: Access = OPEN,
) -> None:
    """Writes `output`, in one rename, whenever it should be another; for ever with `every`, else until all is settled
    for one look. A server that is not up yet is given the config to start with."""
    while True:
        try:
            text, settled = config(root, base_path, _used(output), address, access)
        except UserError as error:
            if every is None:
                raise
            log.warning("%s", error)
            text, settled = (output.read_text(), False) if output.is_file() else config(root, base_path, {})
        if not output.is_file() or output.read_text() != text:
            manifest.write_file(output, text)
            log.info("%s: %s", output, text.splitlines()[0].removeprefix("# "))
        if every is None:
            if not settled:
                log.warning("%s: labels wait for versions to load; repeat the command, or give --follow", output)
            return
        sleep(every)


def _used(output: Path) -> dict[str, Labels]:
    """The labels of the config that is there; none when it is not ours."""
    try:
        first = output.read_text().splitlines()[:1]
        return json.loads(first[0].removeprefix(NOTE)) if first and first[0].startswith(NOTE) else {}
    except (FileNotFoundError, ValueError):
        return {}


def _block(name: str, base_path: str, versions: list[int], targets: Labels) -> str:
    numbers = "\n".join(f"        versions: {version}" for version in versions)
    named = "\n".join(f'    version_labels {{ key: "{label}" value: {version} }}' for label, version in targets.items())
    return (
        f'  config {{\n    name: "{name}"\n    base_path: "{base_path}"\n    model_platform: "tensorflow"\n'
        f"    model_version_policy {{\n      specific {{\n{numbers}\n      }}\n    }}\n{named}\n  }}\n"
    )
