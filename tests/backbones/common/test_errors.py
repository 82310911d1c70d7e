"""Messages name what the user gave, without the secrets in it."""

import pickle
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
