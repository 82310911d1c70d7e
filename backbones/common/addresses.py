"""Addresses in messages and lists, without the secrets that they hold."""

import re

_USER = re.compile(r"(?<=://)(?:([^/?#@:]*):)?[^/?#]*@")
_UNTIL_AT = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_VALUE = re.compile(r"([?#&;])([^=?#&;]*=)?[^?#&;]+")


def without_secrets(name: str) -> str:
    """An address with `***` for its password, or a user without one, and each value of its query.

    What names the server and the file stays, and the names in the query. A name without `://` is of
    a file, and stays as it is.
    """
    if "://" not in name:
        return name
    url = _USER.sub(lambda found: f"{found[1]}:***@" if found[1] else "***@", name)
    return _QUERY.sub(lambda found: _VALUE.sub(r"\1\2***", found[0]), url)


def of_no_form(url: str) -> str:
    """What is no address, with `***` for all that is between `://` and the last `@`: a password may
    hold a slash."""
    return without_secrets(_UNTIL_AT.sub("***@", url))
