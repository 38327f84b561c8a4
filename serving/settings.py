"""What a caller of a client may set."""

import random
from dataclasses import dataclass
from pathlib import Path

from serving.errors import Overloaded, Unavailable


@dataclass(frozen=True)
class Timeouts:
    """Seconds: `connect` for one connection, `total` for a call with all its retries and what it asks beforehand."""

    connect: float = 5.0
    total: float = 30.0

    def __post_init__(self) -> None:
        if not (self.connect > 0 and self.total > 0):
            raise ValueError(f"time-outs are seconds above 0, not connect={self.connect} and total={self.total}")


@dataclass(frozen=True)
class Retries:
    """A call is tried `attempts` times in all, while the server is unavailable.

    Before try k+1 (k = 1, 2, ...) comes a pause drawn evenly from 0 to min(`first_pause` * 2^(k-1), `longest_pause`)
    seconds: spread out, so that many clients do not come back at once. An overloaded server is asked again only with
    `when_overloaded`, and not before its Retry-After. Reload is never tried again: only of the other calls is it known
    that the second time does no harm when the first was carried out before the line broke.
    """

    attempts: int = 4
    first_pause: float = 0.1
    longest_pause: float = 2.0
    when_overloaded: bool = False

    def pause(self, failures: int, error: Unavailable | Overloaded) -> float | None:
        """Seconds to wait after the failure number `failures`; None: give up."""
        if failures >= self.attempts or (isinstance(error, Overloaded) and not self.when_overloaded):
            return None
        drawn = random.uniform(0, min(self.first_pause * 2.0 ** min(failures - 1, 60), self.longest_pause))
        return max(drawn, getattr(error, "retry_after", None) or 0.0)


@dataclass(frozen=True)
class Tls:
    """PEM files: whom to trust (None: what the system trusts), and this client's own certificate with its key."""

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
