"""What a request may ask for, and what an error may tell: as in TF Serving, or stricter under --profile=hardened."""

import logging
import re
import uuid
from dataclasses import dataclass, field

from serving.server.access import Token
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.limits import Limits

log = logging.getLogger("serving")

_GENERIC = {
    Code.INVALID_ARGUMENT: "The model cannot run on this input.",
    Code.FAILED_PRECONDITION: "The model cannot run on this input.",
    Code.OUT_OF_RANGE: "The model cannot run on this input.",
    Code.DEADLINE_EXCEEDED: "The time of the request ran out.",
    Code.RESOURCE_EXHAUSTED: "The server lacks the resources for this request.",
    Code.UNAVAILABLE: "The model is not available.",
}


@dataclass(frozen=True)
class Policy:
    """`reveals`: errors of TensorFlow reach the caller, with the paths, shapes and values in them.

    `checks_method`: a method runs only signatures of its method_name. `packs_tensors`: gRPC answers in tensor_content.
    """

    limits: Limits = field(default_factory=Limits)
    token: Token | None = None
    reveals: bool = True
    checks_method: bool = False
    packs_tensors: bool = False

    def told(self, error: RequestError, request_id: str | None = None) -> str:
        """The text for the caller. One that is held back goes to the log, under an id that the caller gets."""
        if self.reveals or not error.private:
            return error.message
        name = re.sub(r"[^\w.:-]", "_", request_id)[:64] if request_id else uuid.uuid4().hex[:16]
        log.warning("request %s: %s: %s", name, error.code.name, " ".join(error.message.split()))
        return f"{_GENERIC.get(error.code, 'The server failed.')} Its log says more under request {name}."


def policy_of(flags: Flags, token: Token | None) -> Policy:
    return Policy(
        Limits.of(flags),
        token,
        reveals=flags.profile != "hardened",
        checks_method=flags.enable_signature_method_name_check,
        packs_tensors=flags.enable_serialization_as_tensor_content,
    )
