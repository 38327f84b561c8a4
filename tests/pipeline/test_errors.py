"""What an error, a log line and config.json never show: users and passwords of URLs, and what is called a secret."""

import dataclasses
import io
import json
import logging

import pytest

from pipeline import runs
from pipeline.console import Redacting
from pipeline.errors import UserError, redacted
from tests import tiny

PLANTED = "planted-4711"
SHOWN = {
    f"https://user:{PLANTED}@host/simple": "https://***@host/simple",
    f"two: ftp://{PLANTED}@a/b and gs+x://u:{PLANTED}@c:80": "two: ftp://***@a/b and gs+x://***@c:80",
    f"--data.path https:/user:{PLANTED}@host/data is missing": "--data.path https:/***@host/data is missing",
    f"Discarding unparseable args: ['--db_password={PLANTED}', '--x=1']": (
        "Discarding unparseable args: ['--db_password=***', '--x=1']"
    ),
    f"API-KEY={PLANTED} auth_token={PLANTED},y": "API-KEY=*** auth_token=***,y",
    f'{{"Authorization": "Bearer {PLANTED}"}}': '{"Authorization": "Bearer ***"}',
    f"run --password {PLANTED} --region r": "run --password *** --region r",
    f"authorization: {PLANTED} more": "authorization: *** more",
}
KEPT = [
    "https://host/a@b/c, gs://bucket/x, someone@example.com",
    "--token_file /run/token holds no token; the request carries no valid token.",
    "--model.max-tokens 64, max_tokens=64, sort_key=name",
    "version 2, by push of root@host at 2026-01-01T00:00:00+00:00",
]


@pytest.mark.parametrize(("text", "shown"), SHOWN.items())
def test_a_secret_is_replaced_and_the_rest_of_the_text_kept(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", KEPT)
def test_text_without_a_secret_stays_as_it_is(text):
    assert redacted(text) == text


def test_of_json_the_word_after_a_secret_s_name_is_one_too():
    value = {"a": ["--password", PLANTED, "--region", "r"], "b": {"c": [f"s3://k:{PLANTED}@b", 1, None]}, "d": True}
    shown = {"a": ["--password", "***", "--region", "r"], "b": {"c": ["s3://***@b", 1, None]}, "d": True}
    assert redacted(value) == shown


def test_errors_and_log_lines_are_redacted_tracebacks_too():
    assert PLANTED not in str(UserError(f"https://u:{PLANTED}@host cannot be read"))
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(Redacting("%(message)s"))
    log = logging.Logger("planted")
    log.addHandler(handler)
    try:
        raise OSError(f"https://u:{PLANTED}@host")
    except OSError:
        log.exception("%s and %s", f"password={PLANTED}", "more")
    assert "password=*** and more" in told.getvalue()
    assert "https://***@host" in told.getvalue()
    assert PLANTED not in told.getvalue()


def test_a_run_keeps_no_secret_of_its_settings_and_is_still_the_run_of_these_settings(tmp_path):
    config = tiny.planted(tiny.config("image", tmp_path), PLANTED)
    strange = dataclasses.replace(config.data, columns={"label": f"https://{PLANTED}@host"})  # compared, unlike `path`
    config = dataclasses.replace(config, data=strange)
    run_dir = runs.open_run(config, runs.describe(config, "tiny", tmp_path / "records"))
    assert PLANTED not in (run_dir / "config.json").read_text()
    data = json.loads((run_dir / "config.json").read_text())["config"]["data"]
    assert data["path"] == "https:/***@host/rows"
    assert data["runner_options"] == ["--password=***", "--token", "***", "--region=r"]
    assert runs.open_run(config, runs.describe(config, "tiny", tmp_path / "records")) == run_dir
    runs.same_settings(config, run_dir)
