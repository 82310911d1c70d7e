"""Addresses in messages and lists, without the secrets that they hold."""

import re

# A password may hold what it should not, a slash: where no port follows the first colon.
_USER = re.compile(
    r"(?<=://)(?:(?:([^/?#@:]*):)?[^/?#]*@|([^/?#@:]*):(?!\d*(?:[/?#]|$)).*@)", re.DOTALL
)
_UNTIL_AT = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_VALUE = re.compile(r"([?#&;])([^=?#&;]*=)?[^?#&;]+")
# In a text, where it may be that of a `Path`, which has one slash. Of other schemes the last letter
# is enough: to look for all of it at each place of a long text would take minutes.
_ADDRESS = re.compile(
    r"""([a-z\d+.-]:/|\b(?:https?|rtsps?|ftps?|rtmps?|s3|gs):(?!//))/(\S*[^\s'":;,.)\]])""",
    re.IGNORECASE,
)


def without_secrets(name: str) -> str:
    """An address with `***` for its password, or a user without one, and each value of its query.

    What names the server and the file stays, and the names in the query. A name without `://` is of
    a file, and stays as it is.
    """
    if "://" not in name:
        return name
    url = _USER.sub(
        lambda found: f"{user}:***@" if (user := found[1] or found[2]) else "***@", name
    )
    return _QUERY.sub(lambda found: _VALUE.sub(r"\1\2***", found[0]), url)


def text_without_secrets(text: str) -> str:
    """A text, such as a message, with each address in it as `without_secrets` shows it."""
    return _ADDRESS.sub(lambda found: without_secrets(f"{found[1].rstrip('/')}//{found[2]}"), text)


def of_no_form(url: str) -> str:
    """What is no address, with `***` for all that is between `://` and the last `@`: a password may
    hold a slash."""
    return without_secrets(_UNTIL_AT.sub("***@", url))
