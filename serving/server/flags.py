"""The command line, with TF Serving's flag names; imports no TensorFlow, so that --help and mistakes answer at once.

A flag is a field of Flags: its name, type, default and line of help stand there and nowhere else.
"""
# ruff: noqa: RUF009 - `_flag` makes a dataclass field

import argparse
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from serving.arguments import Parser

PROFILES = ("compatible", "hardened")


def _flag(group: str, default: Any, text: str, **hardened: Any) -> Any:
    """A field with its help; `hardened=` is the default under --profile=hardened where that differs."""
    return field(default=default, metadata={"group": group, "help": text, **hardened})


_WHAT = "what to serve (one of three)"
_WHERE = "where"
_LOAD = "loading and unloading"
_RUN = "running requests"
_WATCH = "watching"
_LIMIT = "beyond TF Serving: limits and access"
_QUIET = "taken for compatibility, without an effect here"


@dataclass(frozen=True)
class Flags:
    """What was asked for. Sizes are bytes, `0` switches off, None is not given."""

    serving_root: Path | None = _flag(_WHAT, None, "every model folder in it, under its own name")
    model_base_path: Path | None = _flag(_WHAT, None, "one model: the folder that holds its versions")
    model_name: str = _flag(_WHAT, "default", "the name of --model_base_path")
    model_config_file: Path | None = _flag(_WHAT, None, "text proto ModelServerConfig; replaces base path and name")
    model_config_file_poll_wait_seconds: float = _flag(_WHAT, 0, "read the config file again this often; 0: once")

    port: int = _flag(_WHERE, 8500, "gRPC; 0: none")
    grpc_socket_path: str = _flag(_WHERE, "", "UNIX socket for gRPC, beside --port")
    rest_api_port: int = _flag(_WHERE, 8501, "REST; 0: none, which is TF Serving's default")
    bind: str = _flag(_WHERE, "127.0.0.1", "interface; 0.0.0.0: all, which is TF Serving's")
    admin_port: int = _flag(_WHERE, 0, "metrics, health and list of models apart from the data; 0: none")
    ssl_config_file: Path | None = _flag(_WHERE, None, "text proto SSLConfig: TLS for gRPC")
    tls_certificate: Path | None = _flag(_WHERE, None, "PEM file: TLS for REST and gRPC, with --tls_key")
    tls_key: Path | None = _flag(_WHERE, None, "PEM file of the private key")

    file_system_poll_wait_seconds: float = _flag(_LOAD, 1, "look for versions this often; 0 or less: once")
    max_num_load_retries: int = _flag(_LOAD, 5, "further attempts at a load that failed")
    load_retry_interval_micros: int = _flag(_LOAD, 60_000_000, "wait between the attempts")
    num_load_threads: int = _flag(_LOAD, 0, "loads at the same time; 0: one")
    num_unload_threads: int = _flag(_LOAD, 0, "unloads at the same time; 0: one")
    enable_model_warmup: bool = _flag(_LOAD, True, "run a version's warm-up requests before it serves")
    num_request_iterations_for_warmup: int = _flag(_LOAD, 0, "times that each warm-up request is run; 0: one")
    saved_model_tags: str = _flag(_LOAD, "serve", "comma-separated tags of the graph to load")

    load_in_child: bool = _flag(_LOAD, False, "beyond TF Serving: load on trial in a child process, which may crash")
    allow_version_labels_for_unavailable_models: bool = _flag(_LOAD, False, "a new label may name an unloaded version")

    rest_api_num_threads: int = _flag(_RUN, 0, "threads that run requests; 0: two a CPU, at least 4")
    rest_api_timeout_in_ms: int = _flag(_RUN, 30_000, "bound of a REST request")
    rest_api_enable_cors_support: bool = _flag(_RUN, False, "CORS headers in REST answers")
    grpc_max_threads: int = _flag(_RUN, 0, "threads that run requests; the larger of both flags counts")
    grpc_channel_arguments: str = _flag(_RUN, "", "name=value,... for the gRPC server")
    enable_batching: bool = _flag(_RUN, False, "merge requests into batches")
    batching_parameters_file: Path | None = _flag(_RUN, None, "text proto BatchingParameters, with --enable_batching")
    enable_per_model_batching_parameters: bool = _flag(_RUN, False, "only models with a batching_params.pbtxt batch")
    tensorflow_session_parallelism: int = _flag(
        _RUN, 0, "threads of a session, intra and inter; 0: TensorFlow's choice"
    )
    tensorflow_intra_op_parallelism: int = _flag(_RUN, 0, "threads inside an operation")
    tensorflow_inter_op_parallelism: int = _flag(_RUN, 0, "operations at the same time")
    tensorflow_session_config_file: Path | None = _flag(_RUN, None, "text proto ConfigProto; the flags above win")
    per_process_gpu_memory_fraction: float = _flag(_RUN, 0, "share of the GPU's memory; 0: as needed")
    enable_signature_method_name_check: bool = _flag(
        _RUN, False, "classify and regress check a signature's method_name"
    )
    enable_serialization_as_tensor_content: bool = _flag(
        _RUN, False, "gRPC answers in tensor_content, not typed fields"
    )

    monitoring_config_file: Path | None = _flag(_WATCH, None, "text proto MonitoringConfig: Prometheus metrics")
    enable_grpc_healthcheck_service: bool = _flag(_WATCH, False, "grpc.health.v1", hardened=True)
    health_pages: bool = _flag(_WATCH, False, "/healthz, /readyz and the list of models", hardened=True)
    monitor_drift: bool = _flag(_WATCH, False, "compare inputs with the training statistics of the version")
    version: bool = _flag(_WATCH, False, "print the version and stop")

    profile: str = _flag(_LIMIT, "compatible", "as TF Serving, or hardened: limits on, unknown flags refused")
    max_body_bytes: int = _flag(_LIMIT, 0, "largest request", hardened=16 * 2**20)
    max_gzip_ratio: float = _flag(_LIMIT, 0, "largest growth of a gzip body", hardened=100)
    max_json_depth: int = _flag(_LIMIT, 0, "deepest nesting of a JSON body", hardened=64)
    max_rows: int = _flag(_LIMIT, 0, "most rows in a request", hardened=10_000)
    max_image_pixels: int = _flag(_LIMIT, 0, "largest image, by its header", hardened=50_000_000)
    max_queued_requests: int = _flag(_LIMIT, 0, "requests under way before more are shed; 0: unbounded", hardened=256)
    max_arrival_seconds: float = _flag(_LIMIT, 0, "time in which a request, head and body, must be here", hardened=60)
    max_connections: int = _flag(_LIMIT, 0, "connections to each port; 0: unbounded", hardened=1024)
    token_file: Path | None = _flag(_LIMIT, None, "file of the token that callers must send")
    manifest_key_file: Path | None = _flag(_LIMIT, None, "file of the key that manifests must be signed with")

    num_tflite_pools: int = _flag(_QUIET, 0, "")
    num_tflite_interpreters_per_pool: int = _flag(_QUIET, 0, "")
    prefer_tflite_model: bool = _flag(_QUIET, False, "")
    enable_profiler: bool = _flag(_QUIET, True, "")
    flush_filesystem_caches: bool = _flag(_QUIET, True, "")
    mixed_precision: str = _flag(_QUIET, "", "")
    platform_config_file: Path | None = _flag(_QUIET, None, "")
    remove_unused_fields_from_bundle_metagraph: bool = _flag(_QUIET, True, "")
    skip_initialize_tpu: bool = _flag(_QUIET, False, "")
    thread_pool_factory_config_file: Path | None = _flag(_QUIET, None, "")
    use_alts_credentials: bool = _flag(_QUIET, False, "")
    xla_cpu_compilation_enabled: bool = _flag(_QUIET, False, "")
    xla_gpu_compilation_enabled: bool = _flag(_QUIET, False, "")


def parse(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags, and the arguments that no flag here claims. Exits with status 2 for a value of the wrong type.

    As in TF Serving, what no flag claims is for the caller to warn about; under --profile=hardened it exits as well.
    """
    parser = _parser()
    given, unknown = parser.parse_known_args(argv)
    hardened = getattr(given, "profile", "compatible") == "hardened"
    if hardened:
        if unknown:
            parser.error(f"unknown argument: {unknown[0].partition('=')[0]} (--profile=hardened takes none)")
        defaults = {f.name: f.metadata["hardened"] for f in fields(Flags) if "hardened" in f.metadata}
    else:
        defaults = {}
    flags = Flags(**{**defaults, **vars(given)})
    problem = _problem(flags)
    if problem:
        parser.error(problem)
    return flags, unknown


def _problem(flags: Flags) -> str | None:
    if flags.version:
        return None
    if not (flags.serving_root or flags.model_base_path or flags.model_config_file):
        return "nothing to serve: give --serving_root, --model_base_path or --model_config_file"
    if not (flags.port or flags.rest_api_port or flags.grpc_socket_path):
        return "nobody to serve: --port and --rest_api_port are both 0"
    if flags.batching_parameters_file and not flags.enable_batching:
        return "--batching_parameters_file needs --enable_batching"
    if bool(flags.tls_certificate) != bool(flags.tls_key):
        return "--tls_certificate and --tls_key belong together"
    return None


class _Lines(argparse.HelpFormatter):
    """One line a flag."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=56, width=132)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="minibatch serve",
        usage="minibatch serve [--flag=value | --flag value] ...",
        description="Serves SavedModels over TF Serving's REST and gRPC protocols. "
        "A model is a folder with a subfolder per version, named by an integer. `minibatch serve` alone serves the "
        "models under exports. In a --serving_root LIVE.json says which version answers; without it, the newest.",
        epilog="These are read and passed over: --"
        + ", --".join(f.name for f in fields(Flags) if f.metadata["group"] == _QUIET),
        allow_abbrev=False,
        formatter_class=_Lines,
    )
    types = get_type_hints(Flags)
    groups: dict[str, Any] = {}
    for item in fields(Flags):
        name = item.metadata["group"]
        group = groups.get(name) or groups.setdefault(
            name, parser.add_argument_group(name) if name != _QUIET else parser
        )
        group.add_argument(f"--{item.name}", default=argparse.SUPPRESS, **_reading(item, types[item.name]))
    return parser


def _reading(item: Field, kind: Any) -> dict[str, Any]:
    """How argparse takes the flag; the value's type is the field's."""
    text = item.metadata["help"] + _default(item) if item.metadata["group"] != _QUIET else argparse.SUPPRESS
    if kind is bool:
        return {"help": text, "nargs": "?", "const": True, "type": _boolean, "metavar": "BOOL"}
    if item.name == "profile":
        return {"help": text, "choices": PROFILES}
    kind = next((arg for arg in get_args(kind) if arg is not type(None)), kind)
    metavar = {int: "N", float: "X", str: "TEXT", Path: "PATH"}[kind]
    return {"help": text, "type": kind, "metavar": metavar}


def _default(item: Field) -> str:
    shown = [] if item.default in (None, "", False) else [str(item.default).lower()]
    if "hardened" in item.metadata:
        shown = [str(item.default).lower(), f"hardened: {str(item.metadata['hardened']).lower()}"]
    return f" ({'; '.join(shown)})" if shown else ""


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
