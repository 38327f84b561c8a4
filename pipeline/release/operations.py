"""The commands of an operator, about a model that was pushed: canary, promote, rollback, status, audit, models-config.

Nothing here imports TensorFlow: they answer at once, and run on a host that only sees the serving root.
"""

import argparse
import re
from pathlib import Path

from pipeline.errors import REFUSED, USAGE, Parser, UserError
from pipeline.release import live, rollout
from pipeline.release.access import Access
from pipeline.release.traffic import PATH
from pipeline.release.verdict import Limits

TEXTS = {
    "canary": "Sends a share of the requests that name no version to a version that was pushed. With --judge it stays, "
    "reads the server's metrics, and promotes the version or rolls it back (exit code 3) by itself.",
    "promote": "Makes the canary the stable version; what was stable stays loaded.",
    "rollback": "Takes the canary away; without one, the previous version is stable again.",
    "status": "Shows the versions of a model, or of all, and what is live.",
    "audit": "Walks from the live version back to the data. Exit code 3 when a link is missing, "
    "not what it was, or not recorded.",
    "models-config": "Writes what is live of all models as a models.config of TF Serving.",
}


def main(command: str, arguments: list[str]) -> None:
    """Runs one of these commands. Raises UserError."""
    given = _parser(command).parse_args(arguments)
    if getattr(given, "model", None) is not None and not _name(given.model):
        raise UserError(f"MODEL {given.model!r}: use 1 to 64 letters, digits, '-', '_' or '.', no '..'.", USAGE)
    {
        "canary": _canary,
        "promote": lambda g: print(rollout.promote(g.root / g.model, g.why)),
        "rollback": lambda g: print(rollout.rollback(g.root / g.model, g.version, g.why)),
        "status": _status,
        "audit": _audit,
        "models-config": _models_config,
    }[command](given)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"minibatch {command}", description=TEXTS[command], allow_abbrev=False)
    if command != "models-config":
        number = "?" if command == "status" else None
        parser.add_argument("model", metavar="MODEL", nargs=number, help="name of the folder under the root")
    parser.add_argument("--root", type=Path, default=Path("exports"), help="the serving root (exports)")
    if command in ("canary", "promote", "rollback"):
        parser.add_argument("--why", default="", help="reason, for the journal")
    if command == "rollback":
        parser.add_argument("--version", type=int, metavar="N", help="go back to this one")
    if command == "status":
        parser.add_argument("--address", metavar="HOST:PORT", help="a server's REST port: what does it say?")
    if command == "models-config":
        parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="replaced in one rename")
        parser.add_argument("--base-path", default="/models", metavar="DIR", help="the root as the server sees it")
        parser.add_argument("--address", metavar="HOST:PORT", help="REST port of the server that reads the file")
        parser.add_argument("--follow", type=float, metavar="SECONDS", help="go on, looking this often")
    if command == "canary":
        _canary_options(parser)
    if command in ("canary", "status", "models-config"):
        asked = parser.add_argument_group("with --address, as for `minibatch predict`")
        asked.add_argument("--token_file", type=Path, metavar="FILE", help="its text is sent as a bearer token")
        asked.add_argument("--tls_ca", type=Path, metavar="PEM", help="TLS, trusting what these certificates sign")
    return parser


def _canary_options(parser: argparse.ArgumentParser) -> None:
    limits = Limits()
    parser.add_argument("--version", type=int, required=True, metavar="N")
    parser.add_argument("--percent", type=_percent, default=10, metavar="P", help="share of the requests (10)")
    judged = parser.add_argument_group("with --judge")
    judged.add_argument("--judge", action="store_true", help="stay until it is promoted or rolled back")
    judged.add_argument("--address", nargs="+", metavar="HOST:PORT", help="where the servers' metrics are")
    judged.add_argument("--metrics-path", default=PATH, metavar="PATH", help=f"({PATH})")
    judged.add_argument("--max-seconds", type=_positive, default=3600, metavar="S", help="undecided: roll back (3600)")
    judged.add_argument("--every", type=_positive, default=0.5, metavar="S", help="time between two readings (0.5)")
    judged.add_argument("--min-requests", type=int, default=limits.min_requests, metavar="N", help="(%(default)s)")
    for name, text in (
        ("max_error_increase", "largest increase of the share of failed requests"),
        ("max_latency_ratio", "largest ratio of median and 95th percentile"),
        ("max_shift", "largest move of an output's mean, in its standard deviations"),
        ("confidence", "of the verdict, all looks together"),
    ):
        parse = _share if name == "confidence" else _positive
        option = f"--{name.replace('_', '-')}"
        judged.add_argument(
            option, type=parse, default=getattr(limits, name), metavar="X", help=f"{text} (%(default)s)"
        )


def _canary(given: argparse.Namespace) -> None:
    root = given.root / given.model
    if given.judge and not given.address:
        raise UserError("--judge needs --address: the REST port, or the admin port, of every server.", USAGE)
    access = _access(given)
    if not given.judge:
        print(rollout.canary(root, given.version, given.percent, given.why))
        return
    from pipeline.release import trial

    limits = Limits(
        given.min_requests, given.max_error_increase, given.max_latency_ratio, given.max_shift, given.confidence
    )
    read = trial.reader(given.address, given.model, given.metrics_path, access)
    first = read()  # before any request goes to a canary that nobody could judge
    print(rollout.canary(root, given.version, given.percent, given.why), flush=True)
    state = live.current(root)
    if state and state.canary == given.version:
        try:
            print(trial.watch(root, read, first, limits, given.max_seconds, given.every))
        except rollout.Overtaken as error:
            if not error.promoted:
                raise
            print(error)


def _status(given: argparse.Namespace) -> None:
    from pipeline.release.standing import table
    from pipeline.release.tfserving import standing

    access = _access(given)
    names = [given.model] if given.model else sorted(standing(given.root))
    for name in names:
        print("\n".join(table(given.root / name, given.address, access)))


def _audit(given: argparse.Namespace) -> None:
    from pipeline.release import audit

    chain = audit.audit(given.root / given.model)
    print("\n".join(audit.lines(chain)))
    told = []
    for state, verb in [("BROKEN", "are broken"), ("unknown", "were not recorded")]:
        names = [link.name for link in chain if link.state == state]
        told += [f"{len(names)} of {len(chain)} links {verb}: {', '.join(names)}"] if names else []
    if told:
        raise UserError(f"{given.model}: {'; '.join(told)}.", REFUSED)


def _models_config(given: argparse.Namespace) -> None:
    from pipeline.release.tfserving import follow

    follow(given.root, given.base_path, given.output, given.address, given.follow, access=_access(given))


def _access(given: argparse.Namespace) -> Access:
    """Raises UserError for a file without a token or certificates, before anything is done."""
    access = Access(given.token_file, given.tls_ca)
    access.token(), access.context()
    return access


def _name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text) is not None and ".." not in text


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _percent(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 100")
    return int(value) if value.is_integer() else value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
