"""The command line, with TF Serving's flag names; imports no TensorFlow, so that --help and mistakes answer at once."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Flags:
    port: int  # gRPC; 0: none
    rest_api_port: int  # 0: none
    bind: str
    model_name: str
    model_base_path: Path | None
    model_config_file: Path | None
    serving_root: Path | None
    rest_api_timeout_in_ms: int
    file_system_poll_wait_seconds: float  # 0 or less: the folders are read once, at the start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minibatch serve",
        description="Serves SavedModels over TF Serving's REST and gRPC protocols. "
        "A model is a folder with a subfolder per version, named by an integer; the newest is served.",
        allow_abbrev=False,
    )
    models = parser.add_argument_group("what to serve (one of three)")
    models.add_argument("--serving_root", type=Path, metavar="DIR", help="each model folder in DIR, under its own name")
    models.add_argument("--model_base_path", type=Path, metavar="DIR", help="one model: its folder")
    models.add_argument("--model_config_file", type=Path, metavar="FILE", help="text proto ModelServerConfig")
    models.add_argument("--model_name", default="default", metavar="NAME", help="name for --model_base_path (default)")
    ports = parser.add_argument_group("where")
    ports.add_argument("--port", type=int, default=8500, help="gRPC port (8500; 0: no gRPC)")
    ports.add_argument("--rest_api_port", type=int, default=8501, help="REST port (8501; 0: no REST)")
    ports.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="interface (127.0.0.1; 0.0.0.0: all)")
    parser.add_argument(
        "--rest_api_timeout_in_ms", type=int, default=30_000, metavar="MS", help="bound of a REST request (30000)"
    )
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how often to look for new versions (1; 0: only at the start)",
    )
    return parser


def parse(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags, and the arguments that no flag here claims. Exits with status 2 for a value of the wrong type."""
    parser = _parser()
    values, unknown = parser.parse_known_args(argv)
    if not (values.serving_root or values.model_base_path or values.model_config_file):
        parser.error("nothing to serve: give --serving_root, --model_base_path or --model_config_file")
    if not (values.port or values.rest_api_port):
        parser.error("nobody to serve: --port and --rest_api_port are both 0")
    return Flags(**vars(values)), unknown
