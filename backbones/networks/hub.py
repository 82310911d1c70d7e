"""Weights on the Hugging Face hub; its client transports, resumes and keeps them."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from backbones.common.errors import UserError
from backbones.common.packages import quiet

SCHEME = "hf-hub:"
"""What `OWNER/NAME` or `OWNER/NAME@REVISION` is written after."""

WEIGHTS = "model.safetensors"
"""As timm, transformers and the hub itself call the file of a repository."""

TIMEOUT_SECONDS = 10
"""That the hub may take to answer."""

_ASKING = threading.Lock()

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


def download_weights(name: str) -> Path:
    """The file of weights in a repository, which is downloaded unless it is on the disk already.

    Its name may begin with `hf-hub:` and end with `@REVISION`.

    Raises:
        UserError: there is none, or it does not come whole.
    """
    name = name.removeprefix(SCHEME)
    repository, revision = split_name(name)
    instead = f"{WEIGHTS} from {page_of(repository)} and name that file"
    with download(SCHEME + name, instead), asked_once():
        return Path(huggingface_hub.hf_hub_download(repository, WEIGHTS, revision=revision))


def split_name(name: str) -> tuple[str, str | None]:
    """Repository and revision, where there is one, of a name without `hf-hub:`; raises `UserError`
    unless it is `OWNER/NAME` or `OWNER/NAME@REVISION`."""
    if (match := _NAME.fullmatch(name)) is None:
        raise UserError(
            f"{SCHEME}{name}: expected {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION"
        )
    return match[1], match[2]


def page_of(repository: str) -> str:
    """Where people see a repository."""
    return f"https://huggingface.co/{repository}"


@contextmanager
def download(name: str, instead: str) -> Iterator[None]:
    """Turn what a download raises into one line, which says what to get by hand instead."""
    failure = f"{name}: cannot be downloaded, or the downloaded file is damaged"
    with one_line(failure, f"try again, or download {instead}"):
        yield


@contextmanager
def asked_once() -> Iterator[None]:
    """Where the hub does not answer, take what is on the disk: its client would try for a file that
    is not there for half a minute, and longer behind a firewall.

    Then that client is offline in the whole process until the block ends: one thread at a time.

    Raises:
        Exception: what asking raised, where the disk has not what the block looks for.
    """
    constants = huggingface_hub.constants
    with _ASKING:
        former, silent = constants.HF_HUB_OFFLINE, None
        if not former:
            try:
                huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
            except Exception as error:  # as in `one_line`
                constants.HF_HUB_OFFLINE, silent = True, error
        try:
            yield
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            if silent is None:
                raise
            raise silent from error
        finally:
            constants.HF_HUB_OFFLINE = former


@contextmanager
def one_line(failure: str, advice: str) -> Iterator[None]:
    """Turn what a transfer raises into a `UserError`, with the reason between both parts."""
    try:
        # Each of some ten attempts would be two lines.
        with quiet("huggingface_hub", "httpx", "httpx2"):
            yield
    except UserError:
        raise
    except Exception as error:  # which ones, changes with the library's own HTTP client
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{failure} ({reason}): {advice}") from error
