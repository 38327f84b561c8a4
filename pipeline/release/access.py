"""How a live server is asked: over TLS or in the clear, with a token or without, as `minibatch predict` does."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MISSING, UserError


@dataclass(frozen=True)
class Access:
    token_file: Path | None = None
    """Its text is sent as a bearer token; read for each question, so that it may be changed meanwhile."""
    tls_ca: Path | None = None
    """TLS, trusting what the certificates in this PEM file sign; None: in the clear."""

    def token(self) -> str | None:
        """Raises UserError, which never shows what is in the file."""
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_bytes().strip().decode("ascii")
        except OSError as error:
            raise UserError(f"--token_file {self.token_file}: {error.strerror}.", MISSING) from None
        except UnicodeDecodeError:
            token = ""
        if not (token and token.isprintable()):
            raise UserError(f"--token_file {self.token_file} holds no token: printable ASCII, on one line.", MISSING)
        return token

    def context(self) -> ssl.SSLContext | None:
        """Raises UserError for a file that holds no certificates."""
        try:
            return ssl.create_default_context(cafile=self.tls_ca) if self.tls_ca else None
        except OSError as error:
            raise UserError(f"--tls_ca {self.tls_ca}: {error.strerror}.", MISSING) from None


OPEN = Access()
"""In the clear, without a token."""
