"""The one exception that means "the user can fix this", shown by the tools as a single line."""

from backbones.common.addresses import text_without_secrets


class UserError(ValueError):
    """A mistake in what the user gave: a file, a config key, a box.

    The message is one line that names the culprit, says what was expected, and what to do. The
    tools print it without a traceback and exit with code 2; library callers catch a `ValueError`.
    Of addresses in it no secrets are shown.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(text_without_secrets(message))


class ImageError(UserError):
    """An image file that is missing, truncated, or not an image."""


class ImageTooLargeError(ImageError):
    """An image file with more pixels than are read at once."""


class DiskError(UserError):
    """What the disk refuses to take or to do: no room, no right, no folder."""


class OutputError(UserError):
    """A file that no disk could take: its format cannot hold it, or another's is in its place."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message has the line that installs it."""


class LostProcessError(UserError):
    """Another process of the same training has ended before its time."""
