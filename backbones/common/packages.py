"""Packages that are optional: what they need, and how much they say."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from backbones.common.errors import MissingPackageError


def require(extra: str, *modules: str) -> None:
    """Raise `MissingPackageError`, naming the command for `extra`, unless all `modules` import."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingPackageError(
                f"this needs {' and '.join(modules)} ({error}): pip install 'lowres-rcnn[{extra}]'"
            ) from error


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Let libraries that report every step report errors alone."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
