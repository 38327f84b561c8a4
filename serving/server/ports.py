"""The ports, taken before TensorFlow is imported, so that a clash is known at once."""

import socket

from serving.server.config import ConfigError

_TAKEN = 69


def hold(address: str, port: int, flag: str) -> socket.socket:
    """A bound socket that does not listen: the port is ours, and clients are refused until the models are loaded.

    Raises ConfigError naming the port and the `flag` to change.
    """
    held = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just stopped is no obstacle
        held.bind((address, port))
    except (OSError, OverflowError) as error:
        held.close()
        raise taken(address, port, flag, error) from None
    return held


def taken(address: str, port: int, flag: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"cannot listen on {address} port {port} ({reason}); choose another with {flag}", _TAKEN)
