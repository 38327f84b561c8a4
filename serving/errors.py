"""What can go wrong with a call, as a client sees it.

    ServingError                the server failed in another way, or answered what no such server answers
    |- InvalidRequest           wrong field, type, shape or signature: the same request will fail again
    |- NotFound                 no such model or version
    |- Overloaded               the server's queue is full: try later
    |- Unavailable              nobody listens there, or the model is being loaded or unloaded
    `- DeadlineExceeded         no answer within the time-out

Each message carries the server's own.
"""


class ServingError(Exception):
    pass


class InvalidRequest(ServingError):
    pass


class NotFound(ServingError):
    pass


class Overloaded(ServingError):
    pass


class Unavailable(ServingError):
    pass


class DeadlineExceeded(ServingError):
    pass
