"""One loaded SavedModel: what its run raises."""

import numpy as np
import pytest

from serving.server.errors import Code, RequestError
from serving.server.servable import Servable


def test_a_message_that_quotes_bytes_of_the_request_is_the_clients_mistake(saved_models):
    servable = Servable(saved_models / "examples" / "1")
    signature = servable.signatures["other_name"]
    feeds = {signature.inputs["examples"].name: np.array([b"\xff\xfe is no Example"], object)}
    with pytest.raises(RequestError, match="Could not parse example") as raised:
        servable.run(feeds, (signature.outputs["outputs"].name,))
    assert raised.value.code is Code.INVALID_ARGUMENT
    servable.close()
