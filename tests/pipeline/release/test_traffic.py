"""The metrics page as counts of each version, and what came between two looks at it."""

import math
import socket
import threading
from collections import Counter

import pytest

from pipeline.errors import UNAVAILABLE, UserError
from pipeline.release.traffic import Traffic, parse, quantile, scrape

PAGE = r"""
# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="digits",status="OK"} 9
# TYPE :minibatch:serving:requests counter
:minibatch:serving:requests{model_name="digits",version="3",status="OK"} 7
:minibatch:serving:requests{model_name="digits",version="3",status="INTERNAL"} 2
:minibatch:serving:requests{model_name="digits",version="4",status="OK"} 1
:minibatch:serving:requests{model_name="a \"b\",c{}",version="3",status="OK"} 5
:minibatch:serving:latency_bucket{model_name="digits",version="3",le="10"} 4
:minibatch:serving:latency_bucket{model_name="digits",version="3",le="18"} 8
:minibatch:serving:latency_bucket{model_name="digits",version="3",le="+Inf"} 9
:minibatch:serving:latency_sum{model_name="digits",version="3"} 90
:minibatch:serving:output_count{model_name="digits",version="3",output="score"} 70
:minibatch:serving:output_sum{model_name="digits",version="3",output="score"} 3.5e1
:minibatch:serving:output_sum_squares{model_name="digits",version="3",output="score"} 20.25
:minibatch:serving:output_not_finite{model_name="digits",version="3",output="score"} 1
:minibatch:serving:output_column_count{model_name="digits",version="3",output="score",column="1"} 7
:minibatch:serving:output_column_sum{model_name="digits",version="3",output="score",column="1"} 2.5
:minibatch:serving:load_failures{model_name="digits"} 1
"""


def test_the_counts_of_each_version_are_read_and_those_of_other_models_are_not():
    found = parse(PAGE, "digits")
    assert set(found) == {3, 4}
    assert found[3].requests == Counter(OK=7, INTERNAL=2)
    assert (found[3].total, found[3].errors, found[4].errors) == (9, 2, 0)
    assert found[3].latency == Counter({10.0: 4, 18.0: 8, math.inf: 9})
    assert found[3].outputs == Counter(
        {("score", "count"): 70, ("score", "sum"): 35, ("score", "sum_squares"): 20.25, ("score", "not_finite"): 1}
        | {("score[1]", "count"): 7, ("score[1]", "sum"): 2.5}
    )
    assert parse(PAGE, 'a \\"b\\",c{}')[3].total == 5
    assert parse("", "digits") == {}


def test_what_came_since_is_the_difference_also_of_sums_below_zero():
    before = Traffic(Counter(OK=5), Counter({math.inf: 5}), Counter({("y", "sum"): 3.0}))
    after = Traffic(Counter(OK=8, INTERNAL=1), Counter({math.inf: 9}), Counter({("y", "sum"): -2.0}))
    new = after.since(before)
    assert (new.requests, new.latency[math.inf]) == (Counter(OK=3, INTERNAL=1), 4)
    assert new.outputs["y", "sum"] == -5


def test_all_of_it_is_new_after_the_server_started_anew():
    before, after = Traffic(Counter(OK=5)), Traffic(Counter(OK=2, INTERNAL=1))
    assert after.since(before) == after


def test_traffic_of_several_servers_adds_up():
    assert (Traffic(Counter(OK=5)) + Traffic(Counter(OK=2, INTERNAL=1))).requests == Counter(OK=7, INTERNAL=1)


def test_a_quantile_lies_between_the_bounds_of_its_bucket():
    found = Traffic(latency=Counter({10.0: 0, 20.0: 50, 40.0: 100, math.inf: 100}))
    assert quantile(found, 0.5) == 20
    assert quantile(found, 0.75) == 30
    assert math.isnan(quantile(Traffic(), 0.5))
    assert quantile(Traffic(latency=Counter({10.0: 1, math.inf: 100})), 0.5) == 10


@pytest.mark.parametrize(
    "line", ["x 1", ":minibatch:serving:requests 3", ':minibatch:serving:requests{model_name="digits"} 1']
)
def test_lines_that_are_not_about_a_version_are_passed_over(line):
    assert parse(line, "digits") == {}


def test_a_port_that_speaks_no_http_is_unavailable_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            line, _ = server.accept()
            with line:
                line.recv(1000)
                line.sendall(b"\x00\x00\x12\x04\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="cannot be read") as raised:
            scrape(f"127.0.0.1:{server.getsockname()[1]}", "digits")
        thread.join()
    assert raised.value.code == UNAVAILABLE
