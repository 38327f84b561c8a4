"""The one error of a request, and the one map of its code to HTTP and gRPC."""

from enum import IntEnum

import grpc


class Code(IntEnum):
    """The canonical codes; TensorFlow, gRPC and absl share the numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
NAMES = {code: code.name for code in Code}  # `.name` itself takes longer
GRPC = {Code(status.value[0]): status for status in grpc.StatusCode}


class RequestError(Exception):
    """What the caller is told: `code` decides the HTTP status or gRPC code, `message` is the text of the answer.

    `http` is an HTTP status that has no code of its own. `private` marks a text with paths, shapes or values that
    --profile=hardened keeps for its log. `retry_after` tells the caller in how many seconds to try again.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        http: int | None = None,
        private: bool = False,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.code = code
        self.message = message
        self.http = http or HTTP[code]
        self.private = private
        self.retry_after = retry_after


def invalid(message: str) -> RequestError:
    """The most frequent error."""
    return RequestError(Code.INVALID_ARGUMENT, message)
