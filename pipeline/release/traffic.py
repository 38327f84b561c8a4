"""What the versions of a model were asked and answered, as the server's metrics page counts it.

:minibatch:serving:requests{model_name,version,status}
:minibatch:serving:latency_bucket{model_name,version,le}                               microseconds, cumulative
:minibatch:serving:output_{count,sum,sum_squares,not_finite}{model_name,version,output}  of float outputs
:minibatch:serving:output_column_{count,sum,sum_squares}{model_name,version,output,column}  of those [rows, 2 to 64]
"""

import http.client
import math
import re
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

from pipeline.errors import UNAVAILABLE, UserError
from pipeline.release.access import OPEN, Access

PATH = "/monitoring/prometheus/metrics"
_LINE = re.compile(r":minibatch:serving:(\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MOMENTS = ("count", "sum", "sum_squares", "not_finite")


@dataclass(frozen=True)
class Traffic:
    """Counts of one version; all only grow until the server starts anew."""

    requests: Counter[str] = field(default_factory=Counter)
    """By status, "OK" or the name of an error."""
    latency: Counter[float] = field(default_factory=Counter)
    """Requests that took up to so many microseconds, by upper bound, the last of which is infinite."""
    outputs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (output, one of count, sum, sum_squares, not_finite); column 3 of `scores` is the output `scores[3]`."""

    @property
    def total(self) -> int:
        return int(sum(self.requests.values()))

    @property
    def errors(self) -> int:
        return self.total - int(self.requests["OK"])

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(_sum(mine, theirs, 1) for mine, theirs in zip(_parts(self), _parts(other), strict=True)))

    def since(self, before: "Traffic") -> "Traffic":
        """What came after `before`; all of it when the server started anew meanwhile."""
        if any(self.requests[status] < count for status, count in before.requests.items()):
            return self
        return Traffic(*(_sum(mine, theirs, -1) for mine, theirs in zip(_parts(self), _parts(before), strict=True)))


def parse(page: str, model: str) -> dict[int, Traffic]:
    """The traffic of each version of `model` that the page tells of."""
    found: dict[int, Traffic] = {}
    for line in page.splitlines():
        if not (match := _LINE.fullmatch(line)):
            continue
        name, labels, value = match[1], dict(_LABEL.findall(match[2])), float(match[3])
        if labels.get("model_name") != model or not labels.get("version", "").isdigit():
            continue
        traffic = found.setdefault(int(labels["version"]), Traffic())
        if name == "requests":
            traffic.requests[labels["status"]] += int(value)
        elif name == "latency_bucket":
            traffic.latency[float(labels["le"].replace("+Inf", "inf"))] += int(value)
        elif name.removeprefix("output_column_") in _MOMENTS:
            column = f"{labels['output']}[{labels['column']}]"
            traffic.outputs[column, name.removeprefix("output_column_")] += value  # type: ignore[assignment]
        elif name.removeprefix("output_") in _MOMENTS:
            traffic.outputs[labels["output"], name.removeprefix("output_")] += value  # type: ignore[assignment]  # a Counter's need not be whole
    return found


def scrape(address: str, model: str, path: str = PATH, access: Access = OPEN) -> dict[int, Traffic]:
    """The traffic that the server at `address` (host:port) counts. Raises UserError(UNAVAILABLE)."""
    context, token = access.context(), access.token()
    url = f"{'https' if context else 'http'}://{address}{path}"
    # no proxy stands between us and the address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with opener.open(request, timeout=10) as answer:
            return parse(answer.read().decode(), model)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.UNAUTHORIZED:
            raise UserError(f"{url} answers 401: give the server's token with --token_file.", UNAVAILABLE) from None
        raise UserError(
            f"{url} answers {error.code}: start the server with --monitoring_config_file, whose `path` is {path}.",
            UNAVAILABLE,
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} cannot be read ({getattr(error, 'reason', None) or error}).", UNAVAILABLE) from None


def quantile(traffic: Traffic, share: float) -> float:
    """Microseconds that `share` of the requests stay below, straight between the bounds of a bucket; NaN without any,
    the largest finite bound for what lies above it."""
    lower, below, wanted = 0.0, 0.0, share * traffic.latency[math.inf]
    if not traffic.latency[math.inf]:
        return math.nan
    for bound, count in sorted(traffic.latency.items()):
        if count >= wanted and count > below:
            return lower if bound == math.inf else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


def _parts(traffic: Traffic) -> tuple[Counter, Counter, Counter]:
    return traffic.requests, traffic.latency, traffic.outputs


def _sum(mine: Counter, theirs: Counter, sign: int) -> Counter:
    return Counter({key: mine[key] + sign * theirs[key] for key in {*mine, *theirs}})
