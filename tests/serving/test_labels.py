"""Version labels: who may be pointed at, and which version answers."""

import pytest

from serving.server.errors import Code, RequestError
from tests.serving.shells import Setting


@pytest.fixture
def setting():
    setting = Setting(retries=0)
    setting.aspire(1, 2)
    setting.run()
    return setting


def answered(setting, wanted):
    with setting.models.lease("m", wanted) as (number, _):
        return number


def refused(setting, labels, allow=False):
    with pytest.raises(RequestError) as raised:
        setting.models.relabel({"m": labels}, allow)
    return raised.value.code, str(raised.value)


NOT_AVAILABLE = (
    Code.FAILED_PRECONDITION,
    "Request to assign label to version 3 of model m, which is not currently available for inference",
)


def test_a_label_names_an_available_version(setting):
    setting.models.relabel({"m": {"stable": 1, "canary": 2}}, False)
    assert [answered(setting, label) for label in ("stable", "canary")] == [1, 2]


def test_an_unknown_label_is_an_invalid_argument_also_for_an_unknown_model(setting):
    for model in ("m", "none"):
        with pytest.raises(RequestError, match="Unrecognized servable version label: stable") as raised:
            setting.models.lease(model, "stable")
        assert raised.value.code is Code.INVALID_ARGUMENT


def test_a_label_for_a_version_that_is_not_available_is_refused_and_the_old_labels_stay(setting):
    setting.models.relabel({"m": {"stable": 1}}, False)
    assert refused(setting, {"stable": 3}) == NOT_AVAILABLE
    assert answered(setting, "stable") == 1


def test_if_allowed_a_new_label_may_name_any_version_and_then_answers_that_it_is_not_found(setting):
    setting.models.relabel({"m": {"next": 3}}, True)
    with pytest.raises(RequestError, match=r"Servable not found for request: Specific\(m, 3\)"):
        setting.models.lease("m", "next")


def test_even_if_allowed_a_label_in_use_moves_only_to_an_available_version(setting):
    setting.models.relabel({"m": {"stable": 1}}, True)
    assert refused(setting, {"stable": 3}, allow=True) == NOT_AVAILABLE
    setting.models.relabel({"m": {"stable": 2}}, True)
    assert answered(setting, "stable") == 2


def test_the_labels_of_all_models_are_replaced_at_once(setting):
    setting.models.relabel({"m": {"stable": 1}}, False)
    setting.models.relabel({"other": {}}, False)
    with pytest.raises(RequestError, match="Unrecognized servable version label"):
        setting.models.lease("m", "stable")


def test_a_label_follows_its_version_out(setting):
    setting.models.relabel({"m": {"stable": 1}}, False)
    setting.aspire(2)
    setting.run()
    with pytest.raises(RequestError, match=r"Specific\(m, 1\)"):
        setting.models.lease("m", "stable")
