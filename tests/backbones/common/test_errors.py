"""Messages name what the user gave, without the secrets in it."""

import pickle
import time
from pathlib import Path

import pytest

from backbones.common.errors import ImageError, UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "https://me:secret@host:80/a.jpg: no such file",
            "https://me:***@host:80/a.jpg: no such file",
        ),
        ("got 'rtsp://secret@host/live'; for one", "got 'rtsp://***@host/live'; for one"),
        (
            "x, http://host/a?token=secret&size=secret: damaged",
            "x, http://host/a?token=***&size=***: damaged",
        ),
        (f"{Path('https://me:secret@host/x')}: gone", "https://me:***@host/x: gone"),
        (f"a/{Path('s3://me:secret@host/x')}: gone", "a/s3://me:***@host/x: gone"),
        ("/usr/bin:/opt/a@b?c, C:\\a@b, a:/b@c", "/usr/bin:/opt/a@b?c, C:\\a@b, a:/b@c"),
        ("rtsp://me:a/secret@host/x (of b@c)", "rtsp://me:***@host/x (of b@c)"),
        ("['http://me:secret@a/b', 'ftp://secret@c']", "['http://me:***@a/b', 'ftp://***@c']"),
        ("(see https://host:80/x@y/z.jpg)", "(see https://host:80/x@y/z.jpg)"),
        (
            "hf-hub:OWNER/NAME@main, C:/a@b?c, what? a://",
            "hf-hub:OWNER/NAME@main, C:/a@b?c, what? a://",
        ),
    ],
)
def test_secrets_in_addresses_are_not_shown(text, shown):
    error = ImageError(text)
    assert str(error) == str(UserError(str(error))) == shown
    assert str(pickle.loads(pickle.dumps(error))) == shown


@pytest.mark.parametrize("part", ["a", "a.", "x://a:b,", "http:", "://a:"])
def test_a_long_message_takes_no_time(part):
    start = time.perf_counter()
    assert "secret" not in str(UserError(part * (40_000 // len(part)) + " x://a:secret@b"))
    assert time.perf_counter() - start < 2
