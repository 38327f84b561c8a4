"""What can go wrong with a call, as a client sees it.

    ServingError                the server failed in another way, or answered what no such server answers
    |- InvalidRequest           wrong field, type, shape or signature: the same request will fail again
    |  `- Unsupported           this server, or this protocol, has no such call
    |- NotFound                 no such model or version
    |- Unauthorized             no token, a wrong one, or one that may not do this
    |- Overloaded               the server's queue is full: try later
    |- Unavailable              nobody listens there, or the model is being loaded or unloaded
    `- DeadlineExceeded         no answer within the time-out

Each message carries the server's own.
"""


class ServingError(Exception):
    pass


class InvalidRequest(ServingError):
    pass


class Unsupported(InvalidRequest):
    pass


class NotFound(ServingError):
    pass


class Unauthorized(ServingError):
    pass


class Overloaded(ServingError):
    """`retry_after` is in seconds, None when the server names no time (or a date, which none of these servers does)."""

    def __init__(self, message: str = "", retry_after: str | None = None):
        super().__init__(message)
        self.retry_after = float(retry_after) if retry_after and retry_after.isdecimal() else None


class Unavailable(ServingError):
    pass


class DeadlineExceeded(ServingError):
    pass
