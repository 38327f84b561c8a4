"""A canary under watch: reads the servers' metrics until the judge is sure, then promotes it or rolls it back."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import Refused, UserError
from pipeline.release import live, rollout
from pipeline.release.access import Access
from pipeline.release.traffic import Traffic, scrape
from pipeline.release.verdict import Limits, Verdict, due, judge

log = logging.getLogger(__name__)

SILENCE = 30.0
"""Seconds without the metrics of every server after which the canary is rolled back: it may be what took them down."""


def watch(
    root: Path,
    read: Callable[[], list[dict[int, Traffic]]],
    last: list[dict[int, Traffic]],
    limits: Limits,
    max_seconds: float,
    every: float = 0.5,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Watches the canary of `root`, and returns the line to print once it is promoted.

    `read` gives each server's traffic by version, and raises UserError when one is silent; `last` is what it gave
    before. Raises Refused when the canary was rolled back: for what the judge says, for silence, or for being
    undecided after `max_seconds`; and Overtaken, whatever the judge says, when somebody else decided meanwhile.
    """
    state = live.current(root)
    if state is None or state.canary is None:
        raise UserError(f"{root.name} has no canary to judge.")
    stable = canary = Traffic()
    heard, look = now(), 1
    end = heard + max_seconds
    verdict = Verdict("wait", "nothing was asked yet")
    while now() < end and now() < heard + SILENCE:
        sleep(every)
        rollout.still(root, live.current(root), state.canary)
        try:
            page = read()
        except UserError as error:
            log.warning("%s", error)
            continue
        heard = now()
        stable += _since(page, last, state.stable)
        canary += _since(page, last, state.canary)
        last = page
        if canary.total < due(look):
            continue
        verdict = judge(stable, canary, look, limits)
        log.info("look %d: %s, %s", look, verdict.decision, verdict.why)
        while due(look) <= canary.total:
            look += 1
        if verdict.decision != "wait":
            break
    if verdict.decision == "promote":
        return rollout.promote(root, f"judged {verdict.why}", state.canary)
    why = f"judged {verdict.why}"
    if verdict.decision == "wait":
        silent = now() >= heard + SILENCE
        why = f"no metrics for {SILENCE:g} s" if silent else f"undecided after {max_seconds:g} s, {verdict.why}"
    rollout.rollback(root, why=why, judged=state.canary)
    raise Refused(f"{root.name}: the canary {state.canary} was rolled back: {why}.")


def reader(addresses: list[str], model: str, path: str, access: Access) -> Callable[[], list[dict[int, Traffic]]]:
    return lambda: [scrape(address, model, path, access) for address in addresses]


def _since(page: list[dict[int, Traffic]], last: list[dict[int, Traffic]], version: int) -> Traffic:
    total = Traffic()
    for now, then in zip(page, last, strict=True):
        total += now.get(version, Traffic()).since(then.get(version, Traffic()))
    return total
