"""What docs/client.md prints runs."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from pipeline.__main__ import COMMANDS
from serving import command
from serving.server import flags

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["blocking", "asyncio", "errors", "tls"])
def test_the_code_of_the_page_runs(server, capsys, tmp_path, code):
    here = {"127.0.0.1:8501": server.rest, "127.0.0.1:8500": server.rpc, '"reviews"': '"texts"'}
    for printed, meant in here.items():
        code = code.replace(printed, meant)
    path = tmp_path / "page.py"
    path.write_text(code)
    runpy.run_path(str(path))
    assert "try another server" not in capsys.readouterr().out


def test_the_commands_of_the_page_are_understood(capsys, server):
    lines = [
        line.strip().rpartition("| ")[2] for line in PAGE.splitlines() if "minibatch " in line and line[:4] == "    "
    ]
    words = [shlex.split(line)[1:] for line in lines]
    assert {name for name, *_ in words} <= {*COMMANDS}
    for name, *arguments in words:
        if name == "serve":
            flags.parse(["--serving_root=exports", *arguments])
        elif name == "predict":
            command._parser().parse_args(arguments)
