"""How many pixels an encoded image would have, from its header: a kilobyte can decode to gigabytes."""

import struct

from google.protobuf.message import DecodeError
from tensorflow.core.example import example_pb2

_JPEG, _PNG, _GIF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a")
_MAGICS = (_JPEG, _PNG, *_GIF)  # BMP, the fourth that TensorFlow decodes, is not compressed
_JPEG_FRAMES = frozenset([*range(0xC0, 0xD0)]) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset([0x01, *range(0xD0, 0xDA)]) - {0xD9}  # markers without a length


def pixels(data: bytes) -> int:
    """Width times height (times frames) of the largest image; 0 without the header of one.

    `data` is an image in a format that TensorFlow decodes, or a serialized tf.Example with some among its values.
    """
    if data.startswith(_MAGICS):
        return _declared(data)
    if not any(magic in data for magic in _MAGICS):
        return 0
    try:
        features = example_pb2.Example.FromString(data).features.feature.values()
    except DecodeError:
        return 0
    return max((_declared(v) for f in features for v in f.bytes_list.value if v.startswith(_MAGICS)), default=0)


def _declared(data: bytes) -> int:
    try:
        if data.startswith(_JPEG):
            return _jpeg(data)
        if data.startswith(_PNG):
            width, height = struct.unpack_from(">II", data, 16)
            return width * height
        return _gif(data)
    except struct.error:  # cut inside its header: the decoder will refuse it
        return 0


def _gif(data: bytes) -> int:
    """Every frame is decoded. 0 where no block follows the header, as in a text that begins so."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, frames = 13 + _table_bytes(flags), 0
    try:
        if data[at] not in b"!,;":
            return 0
        while data[at] in b"!,":
            if data[at] == ord(","):
                frames += 1
                at += 11 + _table_bytes(data[at + 9])
            else:
                at += 2
            while data[at]:  # sub-blocks, each after its length
                at += 1 + data[at]
            at += 1
    except IndexError:  # cut; what is there may still be decoded
        pass
    return width * height * max(1, frames)


def _table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _jpeg(data: bytes) -> int:
    """The largest frame that any header declares, since a decoder may take another than the first."""
    largest, at = 0, 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)  # as decoders do: skip to the next marker
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):  # end, or the start of the pixels
            break
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            largest = max(largest, height * width)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return largest
