"""Who may call, and over what: the token, TLS, and where the hardened profile refuses to listen."""

import hmac
import ipaddress
import logging
import ssl
import time
from pathlib import Path

import grpc

from serving.server.config import ConfigError
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.settings import ssl_config

log = logging.getLogger("serving")

_LOOK_AGAIN_SECONDS = 1.0


class Token:
    """The token that callers send as `authorization: Bearer TOKEN`, read again when its file changes.

    Raises ConfigError when there is no token in the file at the start. Later a file that is gone or empty changes
    nothing: a rotation in two steps locks nobody out, and lets nobody in.
    """

    def __init__(self, file: Path):
        self._file = file
        self._expected = b""
        self._seen: tuple[int, int] | None = None
        self._next_look = 0.0
        self._read()
        if not self._expected:
            raise ConfigError(f"--token_file {file} holds no token", 66)

    def check(self, authorization: str | bytes | None) -> None:
        """Raises RequestError(UNAUTHENTICATED); takes the same time whatever is sent."""
        if time.monotonic() >= self._next_look:
            self._read()
        sent = authorization or b""
        sent = sent if isinstance(sent, bytes) else sent.encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, self._expected):
            raise RequestError(Code.UNAUTHENTICATED, "The request carries no valid token.")

    def _read(self) -> None:
        self._next_look = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            found = self._file.stat()
            seen = (found.st_mtime_ns, found.st_ino)
            if seen != self._seen:
                token = self._file.read_bytes().strip()
                self._seen, self._expected = seen, b"Bearer " + token if token else self._expected
        except OSError as error:
            log.warning("--token_file %s: %s (the token stays as it was)", self._file, error.strerror)


def manifest_key(file: Path | None) -> bytes | None:
    """The key of --manifest_key_file. Raises ConfigError when there is none in it."""
    try:
        key = file.read_bytes().strip() if file else None
    except OSError as error:
        raise ConfigError(f"--manifest_key_file {file}: {error.strerror}", 66) from None
    if key == b"":
        raise ConfigError(f"--manifest_key_file {file} holds no key", 66)
    return key


def token_of(flags: Flags) -> Token | None:
    return Token(flags.token_file) if flags.token_file else None


def rest_tls(flags: Flags) -> ssl.SSLContext | None:
    """Of --tls_certificate and --tls_key; TF Serving has none for REST. Raises ConfigError."""
    if not flags.tls_certificate or not flags.tls_key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(flags.tls_certificate, flags.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls_certificate {flags.tls_certificate}, --tls_key {flags.tls_key}: {error}", 66
        ) from None
    return context


def rpc_tls(flags: Flags) -> grpc.ServerCredentials | None:
    """Of --ssl_config_file, which may ask for client certificates, else of --tls_certificate. Raises ConfigError."""
    if flags.ssl_config_file:
        config = ssl_config(flags.ssl_config_file)
        return grpc.ssl_server_credentials(
            [(config.server_key.encode(), config.server_cert.encode())],
            config.custom_ca.encode() or None,
            config.client_verify,
        )
    if rest_tls(flags) is None:  # which also says what is wrong with the files
        return None
    assert flags.tls_certificate
    assert flags.tls_key
    return grpc.ssl_server_credentials([(flags.tls_key.read_bytes(), flags.tls_certificate.read_bytes())])


def check_exposure(flags: Flags) -> None:
    """Raises ConfigError where --profile=hardened would let a whole network in; warns where it could listen in.

    A mesh may well encrypt in front of the server, so only a missing token is refused.
    """
    if flags.profile != "hardened" or _is_loopback(flags.bind):
        return
    if not flags.token_file:
        raise ConfigError(
            f"--profile=hardened listens on {flags.bind} for callers with a token only: give --token_file, "
            "or --bind=127.0.0.1",
            2,
        )
    if not flags.tls_certificate:
        log.warning(
            "the token crosses the network in the clear on %s: give --tls_certificate and --tls_key", flags.bind
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
