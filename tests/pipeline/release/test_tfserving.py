"""What is live as a models.config: TF Serving's own protos read it, and no label moves before its version is there."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.config import model_server_config_pb2

from pipeline import manifest
from pipeline.errors import MISSING, UserError
from pipeline.release import live, rollout, tfserving
from pipeline.release.live import Live
from pipeline.release.tfserving import config, follow, labels, next_config


@pytest.fixture
def root(tmp_path) -> Path:
    for model, versions in {"digits": (1, 2, 3), "reviews": (7,)}.items():
        for number in versions:
            with manifest.committing(tmp_path / "exports" / model / str(number)):
                pass
    with live.locked(tmp_path / "exports" / "digits"):
        live.commit(tmp_path / "exports" / "digits", "push", None, Live(2, 1), "")
    (tmp_path / "exports" / ".hidden").mkdir()
    (tmp_path / "exports" / "empty").mkdir()
    return tmp_path / "exports"


def parsed(text: str) -> dict:
    read = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return {
        model.name: (
            model.base_path,
            model.model_platform,
            list(model.model_version_policy.specific.versions),
            dict(model.version_labels),
        )
        for model in read.model_config_list.config
    }


def test_every_model_is_named_with_its_versions_and_labels(root):
    rollout.canary(root / "digits", 3, 20)
    text, settled = config(root, "/models/", {})
    assert settled
    assert parsed(text) == {
        "digits": ("/models/digits", "tensorflow", [2, 3, 1], {"stable": 2, "canary": 3}),
        "reviews": ("/models/reviews", "tensorflow", [7], {"stable": 7}),
    }


class Server:
    """TF Serving as far as labels go: a config whose used label moves to what is not available is refused whole."""

    def __init__(self):
        self.available: dict[str, set[int]] = {}
        self.labels: dict[str, dict[str, int]] = {}

    def read(self, text: str) -> None:
        found = parsed(text)
        for name, (_, _, _, targets) in found.items():
            for label, version in targets.items():
                used = self.labels.get(name, {}).get(label)
                assert used in (None, version) or version in self.available.get(name, set()), "config refused"
        self.labels = {name: targets for name, (_, _, _, targets) in found.items()}
        self.available = {name: set(versions) for name, (_, _, versions, _) in found.items()}

    def answerable(self) -> bool:
        return all(v in self.available[name] for name, targets in self.labels.items() for v in targets.values())

    def status(self, address: str, name: str, access) -> dict[int, str]:
        return {version: "AVAILABLE" for version in self.available.get(name, set())}


@pytest.fixture
def served(monkeypatch) -> Server:
    made = Server()
    monkeypatch.setattr(tfserving, "server", made.status)
    return made


def written(root: Path, served: Server) -> None:
    """`models-config` once with the server's address, and the server's next look at the file."""
    follow(root, "/models", root.parent / "models.config", "here", None)
    served.read((root.parent / "models.config").read_text())


def test_a_release_and_its_rollback_never_meet_a_config_that_the_server_refuses(root, served):
    served.read(config(root, "/models", {})[0])
    (root.parent / "models.config").write_text(config(root, "/models", {})[0])
    digits = root / "digits"
    for step in (
        lambda: rollout.canary(digits, 3, 20),
        lambda: rollout.promote(digits),
        lambda: rollout.rollback(digits),
        lambda: rollout.rollback(digits, 1),
    ):
        step()
        for _ in range(3):
            written(root, served)
            assert served.answerable()
        assert served.labels["digits"] == labels(live.read(digits))
        assert served.available["digits"] == set(live.read(digits).versions)


def test_a_stable_label_waits_for_its_version(root, served, caplog):
    (root.parent / "models.config").write_text(config(root, "/models", {})[0])
    served.read((root.parent / "models.config").read_text())
    with live.locked(root / "digits"):
        live.commit(root / "digits", "push", Live(2, 1), Live(3, 2), "")
    follow(root, "/models", root.parent / "models.config", "here", None)
    assert parsed((root.parent / "models.config").read_text())["digits"][2:] == ([3, 2], {"stable": 2})
    assert "labels wait for versions to load" in caplog.text


versions = st.integers(1, 5)
lives = st.builds(Live, versions, st.none() | versions, st.none() | versions, st.just(10))


@given(used=st.dictionaries(st.sampled_from(["stable", "canary"]), versions), wanted=lives, loaded=st.sets(versions))
def test_every_config_is_one_that_the_server_takes_and_when_all_is_loaded_it_is_the_last(used, wanted, loaded):
    named, targets = next_config(wanted, used, loaded)
    assert set(wanted.versions) <= set(named)
    assert set(targets.values()) <= set(named)
    assert all(target in loaded or used.get(label) == target for label, target in targets.items())
    assert next_config(wanted, targets, loaded | set(named)) == (wanted.versions, labels(wanted))


def test_a_server_that_is_not_up_yet_gets_a_config_to_start_with_and_later_keeps_what_it_has(root, monkeypatch):
    def down(address, name, access):
        raise UserError("nobody listens there")

    monkeypatch.setattr(tfserving, "server", down)
    output, looks = root.parent / "models.config", []

    def sleep(seconds):
        looks.append(output.read_text())
        if len(looks) == 1:
            rollout.canary(root / "digits", 3, 20)
        if len(looks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(root, "/models", output, "here", 1.0, sleep)
    assert looks[0] == looks[1]
    assert parsed(looks[0])["digits"][3] == {"stable": 2}


def test_a_file_that_is_already_right_is_not_written_again(root):
    output = root.parent / "models.config"
    follow(root, "/models", output, None, None)
    before = output.stat()
    follow(root, "/models", output, None, None)
    assert (output.stat().st_mtime_ns, output.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_config_of_somebody_else_is_replaced(root):
    output = root.parent / "models.config"
    output.write_text("model_config_list {}")
    follow(root, "/models", output, None, None)
    assert json.loads(output.read_text().splitlines()[0].removeprefix(tfserving.NOTE))["digits"] == {"stable": 2}


def test_a_root_that_is_no_folder_is_told(tmp_path):
    with pytest.raises(UserError) as raised:
        config(tmp_path / "nothing", "/models", {})
    assert raised.value.code == MISSING
