"""The list of models replaced while the server runs, by request and by file, and how folders are polled."""

import asyncio

import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2

from serving.client import Client
from serving.errors import InvalidRequest
from serving.server import metrics, model_service
from serving.server.config import ModelConfig, VersionPolicy
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.source import Source
from tests.serving.shells import Setting


@pytest.fixture
def setting():
    setting = Setting(retries=0)
    setting.source = Source(setting.models, None)
    return setting


@pytest.fixture
def folders(tmp_path):
    for name in "abc":
        (tmp_path / name / "1").mkdir(parents=True)
    return tmp_path


def listing(folders, *names, more=""):
    return "".join(
        f'config {{ name: "{name}" base_path: "{folders}/{name}" model_platform: "tensorflow" {more} }} '
        for name in names
    )


def request(text, *metric_names):
    message = model_management_pb2.ReloadConfigRequest(metric_names=metric_names)
    return text_format.Parse(f"config {{ {text} }}" if text else "", message)


def reload(setting, models=None, *metric_names, text=None, keep_up=True):
    """The response; `keep_up` does what the upkeep thread would."""
    message = request(f"model_config_list {{ {models} }}" if text is None else text, *metric_names)

    async def both():
        answer = asyncio.ensure_future(model_service.reload(setting.source, message))
        while not answer.done():
            await asyncio.sleep(0)
            if keep_up and setting.source.overdue.is_set():
                setting.source.poll()
                setting.run()
        return answer.result()

    return asyncio.run(asyncio.wait_for(both(), 20))


def served(setting):
    setting.source.poll()
    setting.run()
    return sorted(name for name, _ in setting.models.available())


def refusal(call):
    with pytest.raises(RequestError) as raised:
        call()
    return raised.value.code, str(raised.value)


def test_the_answer_comes_when_the_new_models_are_available(setting, folders):
    assert reload(setting, listing(folders, "a", "b")).status.error_code == 0
    assert sorted(setting.models.available()) == [("a", 1), ("b", 1)]


def test_a_new_list_replaces_the_old_one_and_left_out_models_are_unloaded(setting, folders):
    reload(setting, listing(folders, "a", "b"))
    reload(setting, listing(folders, "b", "c"))
    assert served(setting) == ["b", "c"]
    assert setting.states("a") == {1: "END"}


def test_an_empty_list_unloads_everything(setting, folders):
    reload(setting, listing(folders, "a"))
    assert reload(setting, "").status.error_code == 0
    assert served(setting) == []


def test_a_model_that_came_back_is_waited_for(setting, folders):
    reload(setting, listing(folders, "a"))
    reload(setting, "")
    served(setting)
    reload(setting, listing(folders, "a"))
    assert setting.models.available() == [("a", 1)]


def test_a_changed_policy_of_an_old_model_is_answered_at_once(setting, folders):
    (folders / "a" / "2").mkdir()
    reload(setting, listing(folders, "a"))
    reload(setting, listing(folders, "a", more="model_version_policy { specific { versions: 1 } }"), keep_up=False)
    assert setting.models.available() == [("a", 2)]
    served(setting)
    assert setting.models.available() == [("a", 1)]


def test_a_new_model_that_fails_is_an_unknown_error_and_the_other_changes_stay(setting, folders):
    reload(setting, listing(folders, "a"))
    setting.broken.add(folders / "b" / "1")
    assert refusal(lambda: reload(setting, listing(folders, "b", "c"))) == (
        Code.UNKNOWN,
        "1 model(s) did not become available: "
        f"{{{{{{name: b version: 1}} due to error: DATA_LOSS: {folders}/b/1 is broken}}, }}",
    )
    assert served(setting) == ["c"]


def test_a_model_that_failed_before_is_not_new_and_not_waited_for(setting, folders):
    setting.broken.add(folders / "b" / "1")
    refusal(lambda: reload(setting, listing(folders, "b")))
    assert reload(setting, listing(folders, "b")).status.error_code == 0


def test_an_empty_list_of_specific_versions_serves_none(setting, folders):
    setting.source.name([ModelConfig("a", folders / "a", VersionPolicy(specific=frozenset()))])
    assert served(setting) == []


def test_a_new_model_without_a_folder_is_waited_for_until_the_caller_gives_up(setting, folders):
    async def impatient():
        message = request(f"model_config_list {{ {listing(folders, 'd')} }}")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model_service.reload(setting.source, message), 0.1)

    asyncio.run(impatient())
    (folders / "d" / "1").mkdir(parents=True)
    assert served(setting) == ["d"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "ServerModelConfig type not supported by HandleReloadConfigRequest. "
             "Only ModelConfigList is currently supported"),
        ("custom_model_config {}", "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                                   "Only ModelConfigList is currently supported"),
        ('model_config_list { config { name: "m" base_path: "/a" } config { name: "m" base_path: "/b" } }',
         "Illegal to list model m multiple times in config list"),
        ('model_config_list { config { name: "m" base_path: "a" } }',
         "Expected model m to have an absolute path or URI; got base_path()=a"),
        ('model_config_list { config { name: "m" base_path: "/a" } }',
         "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
         'model name is m (write model_platform: "tensorflow")'),
        ('model_config_list { config { name: "m" base_path: "/a" model_type: OTHER } }',
         "ModelServerConfig::model_type choice 2 not supported."),
    ],
    ids=["no_config", "a_custom_config", "a_name_twice", "a_relative_path", "no_platform", "another_type"],
)  # fmt: skip
def test_a_list_that_tf_serving_refuses_is_an_invalid_argument_and_changes_nothing(setting, folders, text, expected):
    reload(setting, listing(folders, "a"))
    assert refusal(lambda: reload(setting, text=text)) == (Code.INVALID_ARGUMENT, expected)
    assert served(setting) == ["a"]


def test_a_refused_platform_does_not_spoil_the_next_reload(setting, folders):
    """In TF Serving it does: the list is stored before its platforms are looked at."""
    refusal(lambda: reload(setting, f'config {{ name: "a" base_path: "{folders}/a" }}'))
    reload(setting, listing(folders, "a"))
    assert served(setting) == ["a"]


def test_labels_are_checked_before_anything_is_loaded(setting, folders):
    labelled = listing(folders, "a", more='version_labels { key: "stable" value: 1 }')
    assert refusal(lambda: reload(setting, labelled)) == (
        Code.FAILED_PRECONDITION,
        "Request to assign label to version 1 of model a, which is not currently available for inference",
    )
    assert served(setting) == []
    reload(setting, listing(folders, "a"))
    reload(setting, labelled)
    with setting.models.lease("a", "stable") as (number, _):
        assert number == 1


def test_if_allowed_labels_may_stand_in_the_first_list(folders):
    setting = Setting(retries=0)
    setting.source = Source(setting.models, None, allow_unavailable_labels=True)
    reload(setting, listing(folders, "a", more='version_labels { key: "stable" value: 1 }'))
    with setting.models.lease("a", "stable") as (number, _):
        assert number == 1


def test_the_answer_tells_how_much_each_metric_asked_for_grew(setting, folders):
    metrics.loaded("elsewhere", 0)
    name = "/tensorflow/cc/saved_model/load_attempt_count"
    before = metrics.value(name)
    assert before >= 1
    response = reload(setting, listing(folders, "a"), name, "/no/such/metric")
    assert [(m.name, m.int64_value_increase) for m in response.metric] == [(name, 0), ("/no/such/metric", 0)]


def test_the_config_file_is_applied_when_it_changed_and_left_alone_when_it_is_broken(setting, folders, caplog):
    file = folders / "models.config"
    again = model_service.ConfigFile(setting.source, Flags(model_config_file=file))
    for text, expected in [
        (f"model_config_list {{ {listing(folders, 'a')} }}", ["a"]),
        (f"model_config_list {{ {listing(folders, 'b', 'c')} }}", ["b", "c"]),
        ("model_config_list { config {", ["b", "c"]),
        ('model_config_list { config { name: "m" base_path: "m" } }', ["b", "c"]),
    ]:
        file.write_text(text)
        again.reread()
        assert served(setting) == expected
    assert [record.levelname for record in caplog.records if "not applied" in record.message] == ["ERROR", "ERROR"]
    file.unlink()
    again.reread()
    assert served(setting) == ["b", "c"]


def test_a_missing_base_path_leaves_the_updates_of_other_models_alone(setting, folders, caplog):
    setting.source.name([ModelConfig("gone", folders / "gone"), ModelConfig("a", folders / "a")])
    for _ in range(2):
        assert served(setting) == ["a"]
    assert [r.message for r in caplog.records] == [
        f"Could not find base path {folders}/gone for servable gone; waiting for it"
    ]
    (folders / "a" / "2").mkdir()
    served(setting)
    assert setting.models.available() == [("a", 2)]


def test_a_base_path_that_vanishes_leaves_its_model_loaded_and_one_that_is_empty_unloads_it(setting, folders):
    setting.source.name([ModelConfig("a", folders / "a")])
    served(setting)
    (folders / "a").rename(folders / "away")
    assert served(setting) == ["a"]
    (folders / "a").mkdir()
    assert served(setting) == []


def test_a_serving_root_gains_and_loses_models_and_a_named_one_wins(setting, folders):
    setting.source = Source(setting.models, folders)
    setting.source.name([ModelConfig("a", folders / "b")])
    assert served(setting) == ["a", "b", "c"]
    with setting.models.lease("a") as (_, shell):
        assert shell.path == folders / "b" / "1"
    (folders / "c").rename(folders / ".c")
    assert served(setting) == ["a", "b"]


def test_in_a_serving_root_an_older_version_stands_in_for_one_that_fails(setting, folders):
    setting.source = Source(setting.models, folders)
    (folders / "a" / "2").mkdir()
    setting.broken.add(folders / "a" / "2")
    for _ in range(3):
        served(setting)
    assert setting.states("a") == {2: "END", 1: "AVAILABLE"}
    assert setting.loaded.count(folders / "a" / "2") == 1


def test_a_named_model_serves_nothing_when_its_aspired_version_fails_at_first(setting, folders):
    (folders / "a" / "2").mkdir()
    setting.broken.add(folders / "a" / "2")
    setting.source.name([ModelConfig("a", folders / "a")])
    served(setting)
    assert served(setting) == []
    assert setting.models.outcome("a") is False


def test_specific_versions_that_are_not_there_are_told_and_the_others_served(setting, folders, caplog):
    setting.source.name([ModelConfig("a", folders / "a", VersionPolicy(specific=frozenset({1, 7})))])
    assert served(setting) == ["a"]
    assert [r.message for r in caplog.records] == [f"a: version 7 is asked for, and is not under {folders}/a"]


LABELLED = 'version_labels { key: "stable" value: 2 }'


def test_over_the_wire_a_model_is_added_with_a_label_and_taken_away(server, saved_models):
    config = f'config {{ name: "added" base_path: "{saved_models}/pair" model_platform: "tensorflow" %s }}'
    body = '{"inputs": {"a": [1], "b": [2]}}'
    with Client(server.rpc, "grpc") as client:
        client.reload(f"model_config_list {{ {config % ''} }}")
        client.reload(f"model_config_list {{ {config % LABELLED} }}")
        assert server.predict("added/labels/stable", body).json() == {"outputs": {"b": [2], "total": [30.0]}}
        unknown = server.predict("added/labels/canary", body)
        assert (unknown.status_code, unknown.json()) == (
            400, {"error": "Unrecognized servable version label: canary"}
        )  # fmt: skip
        assert client.predict("added", {"a": [1.0], "b": [2]}, label="stable")["total"] == [30.0]
        with pytest.raises(InvalidRequest, match="Illegal to list model added multiple times"):
            client.reload(f"model_config_list {{ {config % ''} {config % ''} }}")
        client.reload("model_config_list {}")
    server.wait_for("added/2 unloaded")
    assert server.predict("added", body).status_code == 404
    assert server.predict("pair", body).status_code == 200
