"""Runners by name, and how errors come back from workers."""

import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import manifest
from pipeline.errors import MISSING, USAGE, UserError
from pipeline.preprocess import runner
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.reported import Reported, recovered, reported


def test_the_default_runner_is_pinned_and_never_the_direct_runner(config):
    assert type(runner.prepare(config("image").data.runner, ()).runner) is FnApiRunner


def test_another_runner_is_taken_by_name_with_its_own_options():
    pipeline = runner.prepare("FlinkRunner", ("--flink_master=host:8081", "--parallelism=3"))
    assert type(pipeline.runner).__name__ == "FlinkRunner"
    assert pipeline._options.get_all_options()["flink_master"] == "host:8081"


@pytest.mark.parametrize("name", ["NoSuchRunner", "no.such.Runner", "os.NoSuchRunner"])
def test_an_unknown_runner_is_one_line(name):
    with pytest.raises(UserError, match=f"^--data.runner {name}: ") as error:
        runner.prepare(name, ())
    assert error.value.code == USAGE
    assert "\n" not in str(error.value)


def test_a_wrong_option_value_is_one_line_and_prints_no_usage(capsys):
    with pytest.raises(UserError, match=r"^--data\.runner-options --direct_num_workers=two: .*invalid int") as error:
        runner.prepare("FnApiRunner", ("--direct_num_workers=two",))
    assert error.value.code == USAGE
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_a_users_error_survives_whatever_a_runner_makes_of_it():
    with pytest.raises(Reported) as inside, reported():
        raise UserError('a "quoted" message: {odd}', MISSING)
    back = recovered(RuntimeError(f"Traceback (most recent call last)\n  {inside.value} [while running 'Read']\n more"))
    assert (str(back), back.code) == ('a "quoted" message: {odd}', MISSING)


def test_an_unreported_error_stays_as_it_is():
    error = ValueError("a bug")
    assert recovered(error) is error


def test_other_errors_pass_through_untouched():
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


@pytest.mark.slow
def test_worker_processes_give_the_same_records(config, tmp_path):
    """Half a minute, for two processes that import TensorFlow."""
    for name, rows in {"u1.base": range(200), "u1.test": range(200, 260)}.items():
        lines = [f"{n % 9}\t{n}\t{1 + n % 5}\t{n}\n" for n in rows]
        (tmp_path / name).write_text("".join(lines))
    options = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    one, two = (
        preprocess(config("recommendation", tmp_path / folder, source="ml-100k", path=tmp_path, runner_options=more))
        for folder, more in {"one": (), "two": options}.items()
    )
    assert manifest.read(one) == manifest.read(two)
