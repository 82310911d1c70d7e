"""The one exception that means "the user can fix this", shown by the tools as a single line."""


class UserError(ValueError):
    """A mistake in what the user gave: a file, a config key, a box.

    The message is one line that names the culprit, says what was expected, and what to do. The
    tools print it without a traceback and exit with code 2; library callers catch a `ValueError`.
    """


class ImageError(UserError):
    """An image file that is missing, truncated, or not an image."""


class ImageTooLargeError(ImageError):
    """An image file with more pixels than are read at once."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message has the line that installs it."""


class LostProcessError(UserError):
    """Another process of the same training has ended before its time."""
