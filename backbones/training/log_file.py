"""The `log.txt` of a run: all lines that its command prints."""

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from backbones.common.files import open_to_append


class LogFile(logging.StreamHandler):
    """Appends to a run's `log.txt`; goes on without it where the disk refuses it, and says so once.
    Raises `UserError` where it cannot be opened."""

    _has_failed = False

    def __init__(self, run: Path) -> None:
        super().__init__(open_to_append(run / "log.txt"))
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if not self._has_failed:
            error = sys.exc_info()[1]
            sys.stderr.write(f"{self.stream.name}: cannot be written: {error}\n")
        self._has_failed = True

    def close(self) -> None:
        """See `logging.Handler`."""
        # What the disk refuses to take in the end has been said where it refused it first.
        with suppress(OSError):
            self.stream.close()
        super().close()


def print_results(run: Path, lines: Sequence[str]) -> None:
    """Print the last lines of a training, and log them where its folder has not been deleted."""
    print("\n".join(lines))
    if run.is_dir():
        log = LogFile(run)
        for line in lines:
            log.handle(logging.LogRecord(__name__, logging.INFO, "", 0, line, None, None))
        log.close()
