"""From flags and folders to models."""

import pytest

from serving.server.config import ConfigError, ModelConfig, VersionPolicy, discover, model_configs, versions_on_disk
from serving.server.flags import parse

PLATFORM = 'model_platform: "tensorflow"'


def test_a_version_is_a_folder_whose_whole_name_is_a_64_bit_integer(tmp_path):
    for name in ["1", "00000123", "v2", "1.tmp", ".tmp-3", "9223372036854775808", "-1", "1_0"]:
        (tmp_path / name).mkdir()
    (tmp_path / "4").write_text("a file")
    assert versions_on_disk(tmp_path) == {1: tmp_path / "1", 123: tmp_path / "00000123"}
    assert versions_on_disk(tmp_path / "gone") is None


def test_a_serving_root_holds_a_model_per_folder_with_versions(tmp_path):
    for folder in ["digits/1", "reviews/2", "empty", ".hidden/1", "notes/v1"]:
        (tmp_path / folder).mkdir(parents=True)
    assert discover(tmp_path) == [ModelConfig(name, tmp_path / name, rooted=True) for name in ("digits", "reviews")]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", VersionPolicy()),
        ("model_version_policy { latest { num_versions: 3 } }", VersionPolicy(latest=3)),
        ("model_version_policy { all {} }", VersionPolicy(latest=0)),
        ("model_version_policy { specific { versions: 4 versions: 7 } }", VersionPolicy(specific=frozenset({4, 7}))),
        ("model_version_policy { specific {} }", VersionPolicy(specific=frozenset())),
    ],
    ids=["default", "latest", "all", "specific", "none"],
)
def test_a_config_file_states_the_version_policy(tmp_path, policy, expected):
    file = tmp_path / "models.config"
    file.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{tmp_path}" {PLATFORM} {policy} }} }}')
    flags, _ = parse([f"--model_config_file={file}"])
    assert model_configs(flags) == [ModelConfig("m", tmp_path, expected)]


@pytest.mark.parametrize(
    ("text", "words", "status"),
    [
        ("model_config_list { config { nam", "not a ModelServerConfig", 65),
        ('model_config_list { config { name: "m" base_path: "models/m" } }', "to have an absolute path", 65),
        ('model_config_list { config { name: "m" base_path: "/m" } }', "Illegal setting neither .* name is m", 65),
        ('model_config_list { config { name: "m" base_path: "/m" model_platform: "jax" } }', "platform jax", 65),
        ("custom_model_config {}", "does not yet support custom model config", 65),
        ('model_config_list { config { name: "m" base_path: "/a" } config { name: "m" base_path: "/b" } }',
         "Illegal to list model m multiple times", 65),
    ],
    ids=["broken_text", "a_relative_path", "no_platform", "another_platform", "a_custom_config", "a_name_twice"],
)  # fmt: skip
def test_a_config_file_that_cannot_be_served_is_refused(tmp_path, text, words, status):
    file = tmp_path / "models.config"
    file.write_text(text)
    flags, _ = parse([f"--model_config_file={file}"])
    with pytest.raises(ConfigError, match=words) as raised:
        model_configs(flags)
    assert raised.value.status == status
    assert "\n" not in str(raised.value)


def test_a_serving_root_that_is_not_there_is_refused_with_what_makes_it(tmp_path):
    flags, _ = parse([f"--serving_root={tmp_path}/exports"])
    with pytest.raises(ConfigError, match="exports is not a folder; `minibatch run PRESET` makes it") as raised:
        model_configs(flags)
    assert raised.value.status == 66


def test_a_missing_config_file_is_refused(tmp_path):
    flags, _ = parse([f"--model_config_file={tmp_path}/none"])
    with pytest.raises(ConfigError, match="No such file"):
        model_configs(flags)
