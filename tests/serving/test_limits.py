"""What one request may ask for, and what a header of an image says; no server."""

import contextlib
import gzip
import io
import struct
import time
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from serving.server.call import Call
from serving.server.errors import Code, RequestError
from serving.server.images import pixels
from serving.server.limits import Limits, ranges_of

HARDENED = Limits(body_bytes=16 * 2**20, gzip_ratio=100, json_depth=64, rows=100, image_pixels=1_000_000)


def encoded(format: str, width: int, height: int, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (1, 2, 3)).save(file, format, **options)
    return file.getvalue()


def bomb(format: str) -> bytes:
    """A few hundred bytes whose header declares 20000 x 20000 pixels."""
    data = bytearray(encoded(format, 8, 8))
    if format == "JPEG":
        at = next(i for i in range(len(data)) if data[i : i + 2] == b"\xff\xc0")
        struct.pack_into(">HH", data, at + 5, 20_000, 20_000)
    elif format == "PNG":
        struct.pack_into(">II", data, 16, 20_000, 20_000)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    else:
        struct.pack_into("<HH", data, 6, 20_000, 20_000)
    return bytes(data)


def example(**features: bytes) -> bytes:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].bytes_list.value.append(value)
    return made.SerializeToString()


def strings(*values: bytes) -> Call:
    return Call({"x:0": np.array(values, object)}, (), lambda values: values)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF"])
def test_pixels_are_read_from_the_header(format):
    assert pixels(encoded(format, 123, 45)) == 123 * 45


def test_pixels_are_read_behind_the_other_segments_of_a_jpeg():
    exif = Image.Exif()
    exif[0x010E] = "x" * 3000
    assert pixels(encoded("JPEG", 31, 17, exif=exif, progressive=True)) == 31 * 17


def test_every_frame_of_an_animation_counts():
    file = io.BytesIO()
    frames = [Image.new("RGB", (20, 10), (40 * i, 0, 0)) for i in range(5)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1)
    assert pixels(file.getvalue()) == 5 * 200


@pytest.mark.parametrize(
    "data",
    [b"", b"text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0", b"GIF89a", b"GIF89a is a format", b"\xff\xd8\xff\xe0\0"],
)
def test_what_is_no_image_or_is_cut_has_no_pixels(data):
    assert pixels(data) == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF"])
def test_an_image_whose_header_declares_too_many_pixels_is_refused_before_it_is_decoded(format):
    with pytest.raises(RequestError, match="400000000 pixels by its header; 1000000 is the most here"):
        HARDENED.check_call(strings(encoded(format, 8, 8), bomb(format)), {})


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF"])
def test_the_images_inside_examples_are_looked_at_as_well(format):
    HARDENED.check_call(strings(example(image_bytes=encoded(format, 8, 8), text=b"GIF89a is a format")), {})
    with pytest.raises(RequestError, match="400000000 pixels"):
        HARDENED.check_call(
            strings(example(text=b"good", image_bytes=bomb(format), thumbnail=encoded(format, 8, 8))), {}
        )


def test_many_false_headers_in_a_long_text_take_no_long_time():
    assert pixels(b"a" + b"GIF89a\xff\xd8\xff" * 200_000) == 0


def test_rows_are_bounded():
    HARDENED.check_call(Call({"x:0": np.zeros(100), "s:0": np.zeros(())}, (), list), {})
    with pytest.raises(RequestError, match="101 rows; 100 is the most here") as caught:
        HARDENED.check_call(Call({"x:0": np.zeros((101, 2))}, (), list), {})
    assert caught.value.http == 400


@pytest.mark.parametrize(
    "text",
    ["[" * 64 + "]" * 64, '{"a":[' * 32 + "]}" * 32, '["' + "[" * 500 + '", "\\"' + "{" * 500 + '"]', "[1]," * 500],
    ids=["lists", "objects_and_lists", "brackets_in_strings", "many_side_by_side"],
)
def test_json_up_to_the_depth_passes(text):
    HARDENED.check_json(text.encode())


@pytest.mark.parametrize(
    "text",
    ["[" * 65 + "]" * 65, '{"a":[' * 33 + "]}" * 33, "[" * 10_000, '["]",' * 70 + "1" + "]" * 70],
    ids=["lists", "objects_and_lists", "never_closed", "closings_in_strings"],
)
def test_deeper_json_is_refused_before_it_is_parsed(text):
    with pytest.raises(RequestError, match="nests deeper than 64"):
        HARDENED.check_json(text.encode())


@pytest.mark.parametrize(
    "text",
    [b"a" * 10**6, rb"\"" * 500_000, b"\\" * 10**6, b'"a' * 300_001],
    ids=["plain", "escaped quotes", "backslashes", "many strings"],
)
def test_a_string_that_is_never_closed_is_read_in_one_go(text):
    began = time.process_time()
    with contextlib.suppress(RequestError):
        HARDENED.check_json(b"[" * 65 + b'"' + text)
    assert time.process_time() - began < 1  # not hours


def test_a_body_over_the_limit_is_413():
    HARDENED.check_size(16 * 2**20)
    with pytest.raises(RequestError) as caught:
        HARDENED.check_size(16 * 2**20 + 1)
    assert (caught.value.http, caught.value.code) == (413, Code.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize(
    ("size", "status"), [(2**20, 200), (3 * 2**20, 413), (40 * 2**20, 413)], ids=["short", "ratio", "body"]
)
def test_a_gzip_bomb_is_413_and_is_not_unpacked(size, status):
    body = gzip.compress(bytes(size))
    tracemalloc.start()
    try:
        found = 200 if HARDENED.inflated(body, "gzip") == bytes(size) else 0
    except RequestError as error:
        found = error.http
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == status
    assert peak < 20 * 2**20


def test_a_value_out_of_the_declared_range_is_refused_before_the_graph():
    described = {"token": {"kind": "number", "low": 0, "high": 99}, "text": {"kind": "text"}}
    inputs = {"token": SimpleNamespace(name="t:0"), "text": SimpleNamespace(name="s:0")}
    ranges = ranges_of(described, {"serving_default": SimpleNamespace(inputs=inputs)})
    for passing in ([0, 99], [], [[5]]):
        Limits().check_call(Call({"t:0": np.array(passing, np.int64)}, (), list), ranges)
    Limits().check_call(Call({"t:0": np.array([b"x"], object), "s:0": np.array([b"x"], object)}, (), list), ranges)
    for value in (-1, 100, 2**40, np.nan, np.inf):
        with pytest.raises(RequestError, match=r"Input token holds .*, which is not within 0 and 99") as caught:
            Limits().check_call(Call({"t:0": np.array([5, value])}, (), list), ranges)
        assert caught.value.http == 400


def test_without_limits_a_gzip_body_counts_as_tf_serving_counts_it():
    none = Limits()
    assert none.inflated(gzip.compress(b"{}"), "x-GZIP") == b"{}"
    assert none.inflated(b"{}", "identity") == b"{}"
    assert none.inflated(gzip.compress(b"{}")[:-4], "gzip") == b""
    assert none.inflated(b"{}", "gzip") == b""
    assert none.inflated(gzip.compress(bytes(101 * 2**20), 1), "gzip") == b""
    none.check_size(2**40)
    none.check_json(b"[" * 100_000)
    none.check_call(strings(bomb("PNG"), *[b""] * 100_000), {})
