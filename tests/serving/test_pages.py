"""Health, readiness, the list of models and the metrics page: which port has which, and what they say."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serving.server import metrics
from serving.server.access import Token
from serving.server.admin import application
from serving.server.config import ConfigError
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.lifecycle import Models
from serving.server.pages import Pages
from serving.server.settings import metrics_path, ssl_config

PLAIN = Flags(serving_root=Path("/models"))
METRICS = "/monitoring/prometheus/metrics"


class Shell:
    def close(self) -> None:
        pass


def load(path: Path) -> Shell:
    if path.name == "13":
        raise RequestError(Code.DATA_LOSS, f"{path}/variables is gone")
    return Shell()


def models(**versions: int) -> Models:
    """One version of each model; 13 fails, and 0 is still waited for."""
    made = Models(load, lambda step: step(), retries=0)
    for name, number in versions.items():
        made.aspire(name, {number: Path(f"/models/{name}/{number}")})
        if number:
            made.act()
    return made


def flags(tmp_path: Path, monitoring: str | None = None, **changes) -> Flags:
    if monitoring is not None:
        (tmp_path / "monitoring.config").write_text(monitoring)
        changes["monitoring_config_file"] = tmp_path / "monitoring.config"
    return replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("started", "served", "status", "text"),
    [
        (True, {"a": 1, "b": 2}, 200, "ready\n"),
        (True, {"a": 1, "b": 13}, 200, "ready\n"),
        (True, {"a": 1, "b": 0}, 200, "ready\n"),
        (True, {"a": 13}, 503, "not ready\n"),
        (True, {}, 503, "not ready\n"),
        (False, {"a": 1, "b": 0}, 503, "not ready\n"),
    ],
    ids=["all_answer", "one_failed", "a_new_one_is_on_its_way", "nothing_answers", "nothing_is_there", "at_the_start"],
)
def test_readiness_is_a_status_of_its_own(started, served, status, text):
    pages = Pages(models(**served), PLAIN)
    pages.started = started
    page = pages.answer("GET", "/readyz", b"", operator=True)
    assert (page.status, page.text) == (status, text)


def test_a_model_that_was_taken_away_leaves_the_others_ready():
    served = models(a=1, b=2)
    pages = Pages(served, PLAIN)
    pages.started = True
    served.aspire("b", {})
    while served.act():
        pass
    assert served.available() == [("a", 1)]
    assert pages.answer("GET", "/readyz", b"", operator=True).status == 200


def test_a_server_that_drains_is_alive_and_not_ready():
    pages = Pages(models(a=1), PLAIN)
    pages.started = pages.draining = True
    assert pages.answer("GET", "/readyz", b"", operator=True).status == 503
    assert pages.answer("GET", "/healthz", b"", operator=True).status == 200


def test_the_list_has_every_version_with_its_state_and_why_it_failed():
    page = Pages(models(a=1, b=13), PLAIN).answer("GET", "/v1/models", b"", operator=True)
    assert page.media == "application/json"
    (a, b) = json.loads(page.text)["models"]
    ok = {"error_code": "OK", "error_message": ""}
    assert a == {"name": "a", "model_version_status": [{"version": "1", "state": "AVAILABLE", "status": ok}]}
    assert b["model_version_status"][0]["state"] == "END"
    assert b["model_version_status"][0]["status"]["error_message"] == "/models/b/13/variables is gone"


@pytest.mark.parametrize(
    ("monitoring", "path"),
    [
        ("prometheus_config { enable: true }", METRICS),
        ('prometheus_config: { enable: true, path: "/metrics" }', "/metrics"),
        ('prometheus_config { path: "/metrics" }', None),
        ("", None),
        (None, None),
    ],
    ids=["default_path", "own_path", "not_enabled", "an_empty_file", "no_file"],
)
def test_the_monitoring_config_says_where_the_metrics_are_on_the_data_port(tmp_path, monitoring, path):
    asked = flags(tmp_path, monitoring)
    assert metrics_path(asked.monitoring_config_file) == path
    pages = Pages(models(), asked)
    found = [p for p in (METRICS, "/metrics") if pages.answer("GET", p, b"")]
    assert found == ([path] if path else [])


def test_the_metrics_come_for_any_method_and_not_with_a_query(tmp_path):
    pages = Pages(models(), flags(tmp_path, "prometheus_config { enable: true }"))
    assert pages.answer("POST", METRICS, b"") == (200, "text/plain", metrics.text())
    assert pages.answer("GET", METRICS, b"x=1") == (
        400,
        "text/plain",
        f"Unexpected path: {METRICS}?x=1. Should be {METRICS}",
    )


@pytest.mark.parametrize(
    ("changes", "health", "counted"),
    [
        ({}, False, True),
        ({"health_pages": True}, True, True),
        ({"health_pages": True, "profile": "hardened"}, False, False),
    ],
    ids=["as_tf_serving", "asked_for", "hardened"],
)
def test_the_data_port_has_only_what_was_asked_for_and_nothing_when_hardened(tmp_path, changes, health, counted):
    pages = Pages(models(a=1), flags(tmp_path, "prometheus_config { enable: true }", **changes))
    pages.started = True
    for path in ("/healthz", "/readyz", "/v1/models"):
        assert (pages.answer("GET", path, b"") is not None) == health
        assert pages.answer("POST", path, b"") is None
        assert pages.answer("GET", path, b"", operator=True).status == 200
    assert (pages.answer("GET", METRICS, b"") is not None) == counted
    assert pages.answer("GET", METRICS, b"", operator=True).status == 200


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [("prometheus_config { enabled: true }", 65, "is not a MonitoringConfig: .*enabled"), (None, 66, "No such file")],
    ids=["an_unknown_field", "no_file"],
)
def test_a_monitoring_config_that_cannot_be_read_is_one_line(tmp_path, text, status, message):
    if text is not None:
        (tmp_path / "monitoring.config").write_text(text)
    with pytest.raises(ConfigError, match=f"--monitoring_config_file .*{message}") as caught:
        metrics_path(tmp_path / "monitoring.config")
    assert caught.value.status == status


def test_an_ssl_config_has_pem_texts_and_an_error_never_shows_them(tmp_path):
    file = tmp_path / "ssl.config"
    file.write_text('server_key: "k\\n" server_cert: "c" custom_ca: "a" client_verify: true')
    config = ssl_config(file)
    assert (config.server_key, config.server_cert, config.custom_ca, config.client_verify) == ("k\n", "c", "a", True)
    file.write_text('server_key: "planted" "secret')
    with pytest.raises(ConfigError) as caught:
        ssl_config(file)
    assert "planted" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_admin_port_asks_for_the_token_but_not_of_a_probe(tmp_path):
    file = tmp_path / "token"
    file.write_text("open sesame\n")
    pages = Pages(models(a=1), PLAIN)
    pages.started = True
    transport = httpx.ASGITransport(application(pages, Token(file)))

    async def ask(path: str, token: str | None) -> int:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return (await client.get(path, headers=headers)).status_code

    asked = [("/healthz", None), ("/readyz", None), (METRICS, None), ("/v1/models", "wrong"), ("/x", None)]
    assert [asyncio.run(ask(*request)) for request in asked] == [200, 200, 401, 401, 401]
    right = [(METRICS, "open sesame"), ("/v1/models", "open sesame"), ("/x", "open sesame")]
    assert [asyncio.run(ask(*request)) for request in right] == [200, 200, 404]
