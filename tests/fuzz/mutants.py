"""Files that are not as their writers left them, each known by its seed."""

import json
import re
import struct
from random import Random

TOKEN = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\"[^\"\n]*\"|[A-Za-z_]+|[\[\]{}:,<>]")

ODD = [
    *(b"NaN", b"nan", b".nan", b"inf", b"-Infinity", b".inf", b"1e400", b"-1e400", b"1e300"),
    *(b"0", b"-1", b"-0.0", b"1.5", b"2147483648", b"9223372036854775808", b"9" * 5000),
    *(b"null", b"true", b"~", b"[]", b"{}", b'""', b"[[]]", b'{"a": 1}', b"[1, 2, 3, 4]"),
    *(b'"\\ud800"', b'"\\u0000"', b'"\xff"', b"\x00", b"\xef\xbb\xbf", b'"' + b"a" * 9000 + b'"'),
    *(b'"../../etc/passwd"', b'"/dev/zero"', b'"a/../b"', b"2020-99-99", b"!!python/name:os.sep"),
    *(b"&a [*a]", b"*a", b"<<: 3", b"[" * 30_000, b'{"a":' * 30_000, b"- " * 30_000),
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<a>" * 30_000, b"\n", b"\t", b": ", b"---\n"),
]
"""What stands in for a token."""


def mutant(original: bytes, random: Random) -> bytes:
    """The file with one to four changes, of its bytes or of its words."""
    data = original
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        change = random.choice((_flip, _overwrite, _cut, _remove, _repeat, _insert, _zero, _word))
        data = change(data, random)
    return data


def word_mutant(original: bytes, random: Random) -> bytes:
    """The text with one to three other words in it."""
    data = original
    for _ in range(random.choice((1, 1, 2, 3))):
        data = _word(data, random)
    return data


def header_mutant(original: bytes, random: Random) -> bytes:
    """A `.safetensors` file with other words in its header, or one of its metadata; its length
    is right, and it has no digest, so that what the words say is looked at."""
    (length,) = struct.unpack("<Q", original[:8])
    header = json.loads(original[8 : 8 + length])
    metadata = header["__metadata__"]
    metadata.pop("digest", None)
    if random.random() < 0.7:
        key = random.choice(sorted(metadata))
        text = word_mutant(metadata[key].encode(), random)
        metadata[key] = text.decode("utf-8", "surrogateescape")
        data = json.dumps(header).encode()
    else:
        data = word_mutant(json.dumps(header).encode(), random)
    return struct.pack("<Q", len(data)) + data + original[8 + length :]


def _place(data: bytes, random: Random) -> tuple[int, int]:
    """A piece of the file, short more often than long; half of them at its beginning."""
    end = len(data) if random.random() < 0.5 else min(len(data), 600)
    start = random.randrange(end + 1)
    return start, min(len(data), start + int(2 ** random.uniform(0, 12)))


def _flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 8))):
        start, _ = _place(data, random)
        if start < len(changed):
            changed[start] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, random: Random) -> bytes:
    start, end = _place(data, random)
    value = random.choice((b"\x00", b"\xff", b"\x7f", b"\x80", b"9", None))
    new = random.randbytes(end - start) if value is None else value * (end - start)
    return data[:start] + new + data[end:]


def _cut(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)[0]]


def _remove(data: bytes, random: Random) -> bytes:
    start, end = _place(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _place(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 40)) + data[end:]


def _insert(data: bytes, random: Random) -> bytes:
    start, end = _place(data, random)
    return data[:start] + random.randbytes(end - start) + data[start:]


def _zero(data: bytes, random: Random) -> bytes:
    start = _place(data, random)[0] // 4096 * 4096
    return data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]


def _word(data: bytes, random: Random) -> bytes:
    words = list(TOKEN.finditer(data[:100_000]))
    if not words:
        return _overwrite(data, random)
    chosen = random.choice(words)
    new = random.choice(ODD) if random.random() < 0.8 else random.choice(words)[0]
    return data[: chosen.start()] + new + data[chosen.end() :]
