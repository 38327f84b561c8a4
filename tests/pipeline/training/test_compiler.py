"""Claims about what XLA is told."""

import os
import re
import subprocess
import sys

import pytest

from pipeline.training import compiler

PROGRAM = """
import sys
import tensorflow as tf
from pipeline.training import compiler

if sys.argv[1] == "prepared":
    compiler.prepare()

@tf.function(jit_compile=True)
def products(rows):
    return tf.reduce_sum(rows[0] * rows[1], axis=1)

assert products(tf.ones([2, 128, 32]))[0] == 32.0
"""


@pytest.mark.parametrize("said", ["", "--xla_dump_to=somewhere", "--xla_backend_extra_options=--unroll-count=2"])
def test_what_is_said_already_stays(said, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", said)
    for _ in range(2):
        compiler.prepare()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[: len(said.split())] == said.split()
    assert sorted(flag.partition("=")[0] for flag in flags if flag not in said or "extra" in flag) == [
        "--xla_backend_extra_options",
        "--xla_cpu_prefer_vector_width",
    ]


@pytest.mark.slow
def test_rows_of_32_numbers_are_added_up_by_vectors_as_they_are_not_without(tmp_path):
    found = {}
    for way in ("prepared", "plain"):
        dump = tmp_path / way
        environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={dump}"}
        subprocess.run([sys.executable, "-c", PROGRAM, way], env=environment, check=True, capture_output=True)
        code = "".join(file.read_text() for file in dump.glob("*ir-with-opt.ll"))
        found[way] = len(re.findall(r"fadd .*<\d+ x float>", code))
    assert found["prepared"] > 0 == found["plain"], found
