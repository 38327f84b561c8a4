"""The command line: TF Serving's names and forms, ours, and the defaults of both profiles."""

from dataclasses import fields
from pathlib import Path

import pytest

from serving.server.flags import Flags, parse

ROOT = "--serving_root=/models"


def test_a_flag_takes_its_value_with_or_without_an_equals_sign():
    flags, unknown = parse(["--port=1", "--rest_api_port", "2", "--model_base_path", "/m", "--model_name=digits"])
    assert (flags.port, flags.rest_api_port, flags.model_base_path, flags.model_name) == (1, 2, Path("/m"), "digits")
    assert unknown == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--enable_batching"], True),
        (["--enable_batching=true"], True),
        (["--enable_batching=false"], False),
        (["--enable_batching", "false"], False),
        (["--enable_batching=1"], True),
        ([], False),
    ],
    ids=["alone", "true", "false", "a_word_apart", "one", "absent"],
)
def test_a_boolean_flag_stands_alone_or_has_a_value(words, expected):
    flags, unknown = parse([*words, ROOT])
    assert (flags.enable_batching, unknown) == (expected, [])


def test_negative_numbers_are_values():
    flags, _ = parse([ROOT, "--file_system_poll_wait_seconds", "-1", "--load_retry_interval_micros=-5"])
    assert (flags.file_system_poll_wait_seconds, flags.load_retry_interval_micros) == (-1, -5)


def test_every_flag_of_tf_serving_is_known():
    names = """
        port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms rest_api_enable_cors_support
        enable_batching allow_version_labels_for_unavailable_models batching_parameters_file
        enable_per_model_batching_parameters model_config_file model_config_file_poll_wait_seconds model_name
        model_base_path num_load_threads num_unload_threads max_num_load_retries load_retry_interval_micros
        file_system_poll_wait_seconds flush_filesystem_caches tensorflow_session_parallelism
        tensorflow_session_config_file tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism
        use_alts_credentials ssl_config_file platform_config_file per_process_gpu_memory_fraction saved_model_tags
        grpc_channel_arguments grpc_max_threads enable_model_warmup num_request_iterations_for_warmup version
        monitoring_config_file remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
        num_tflite_interpreters_per_pool enable_signature_method_name_check xla_cpu_compilation_enabled
        xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file mixed_precision
        skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
    """
    assert set(names.split()) - {field.name for field in fields(Flags)} == set()


def test_defaults_are_tf_servings_but_for_the_interface_and_the_rest_port():
    flags, _ = parse([ROOT])
    assert (flags.port, flags.rest_api_timeout_in_ms, flags.model_name) == (8500, 30_000, "default")
    assert (flags.max_num_load_retries, flags.load_retry_interval_micros) == (5, 60_000_000)
    assert (flags.file_system_poll_wait_seconds, flags.model_config_file_poll_wait_seconds) == (1, 0)
    assert (flags.enable_model_warmup, flags.enable_grpc_healthcheck_service) == (True, False)
    assert (flags.bind, flags.rest_api_port) == ("127.0.0.1", 8501)
    limits = {getattr(flags, field.name) for field in fields(Flags) if field.name.startswith("max_")}
    assert limits == {0, flags.max_num_load_retries}


def test_the_hardened_profile_sets_limits_that_a_flag_overrides():
    flags, _ = parse([ROOT, "--profile=hardened", "--max_rows=7"])
    assert (flags.max_rows, flags.max_body_bytes, flags.health_pages) == (7, 16 * 2**20, True)


def test_an_unknown_flag_is_passed_over_when_compatible_and_refused_when_hardened(capsys):
    words = [ROOT, "--no_such_flag=1", "--other", "y"]
    assert parse(words)[1] == ["--no_such_flag=1", "--other", "y"]
    with pytest.raises(SystemExit) as stop:
        parse([*words, "--profile=hardened"])
    assert stop.value.code == 2
    assert "unknown argument: --no_such_flag (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--port=1"], "nothing to serve"),
        ([ROOT, "--port=0", "--rest_api_port=0"], "nobody to serve"),
        ([ROOT, "--port=many"], "invalid int value"),
        ([ROOT, "--enable_batching=perhaps"], "neither true nor false"),
        ([ROOT, "--batching_parameters_file=/b"], "--batching_parameters_file needs --enable_batching"),
        ([ROOT, "--tls_key=/k"], "belong together"),
    ],
    ids=["nothing_to_serve", "no_port", "a_number", "a_boolean", "batching_parameters", "a_key_without_certificate"],
)
def test_flags_that_make_no_sense_are_refused(words, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_help_has_a_line_for_each_flag_that_does_something(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 132
    for field in fields(Flags):
        assert f"--{field.name}" in text
        if field.metadata["help"]:
            assert [line for line in lines if f"--{field.name} " in line and field.metadata["help"] in line], field.name
