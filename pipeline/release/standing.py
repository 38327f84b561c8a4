"""How a model stands, as a table: its versions on the disk, what LIVE.json makes of them, what a server says."""

from collections.abc import Iterator
from pathlib import Path

from pipeline import manifest
from pipeline.errors import UNAVAILABLE, USAGE, UserError
from pipeline.release import live
from pipeline.release.access import OPEN, Access


def table(root: Path, address: str | None = None, access: Access = OPEN) -> Iterator[str]:
    """A line a version, newest first, under a heading; with `address` (REST) also what the server there says. Raises
    Corrupt when LIVE.json is."""
    state, served = live.current(root), server(address, root.name, access) if address else {}
    numbers = {*live.versions(root), *(state.versions if state else []), *served}
    yield f"{root.name:<20} {'on disk':<12}{'live':<14}{'server' if address else ''}".rstrip()
    for number in sorted(numbers, reverse=True):
        yield f"  {number:<18} {_disk(root, number):<12}{_role(state, number):<14}{served.get(number, '')}".rstrip()
    if not numbers:
        yield "  no version yet"
    for event in live.events(root)[-1:]:
        yield f"  {event.event}, {event.when}, {event.who}: {event.why}"


def server(address: str, model: str, access: Access = OPEN) -> dict[int, str]:
    """State of each version by the server's own words. Raises UserError(UNAVAILABLE)."""
    from serving.client import Client, NotFound, ServingError, Tls, Unauthorized

    token, tls = access.token(), Tls(access.tls_ca) if access.context() else None
    try:
        with Client(address, timeout=10, token=token, tls=tls) as client:
            known = client.status(model)
    except NotFound:
        return {}
    except Unauthorized:
        raise UserError(f"{address} answers 401: give the server's token with --token_file.", UNAVAILABLE) from None
    except ServingError as error:
        raise UserError(f"{address}: {' '.join(str(error).split())}", UNAVAILABLE) from None
    except ValueError as error:
        raise UserError(f"--address: {error}.", USAGE) from None
    return {v.version: f"{v.state} {v.error_message}".rstrip() for v in known}


def _disk(root: Path, number: int) -> str:
    path = live.versions(root).get(number)
    return "missing" if path is None else "committed" if manifest.is_committed(path) else "uncommitted"


def _role(state: live.Live | None, number: int) -> str:
    if state is None:
        return ""
    roles = {state.previous: "previous", state.canary: f"canary {state.percent:g}%", state.stable: "stable"}
    return roles.get(number, "")
