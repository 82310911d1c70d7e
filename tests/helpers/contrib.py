"""Tests of selective search run where OpenCV has its contrib modules."""

import pytest

from backbones.common.errors import MissingPackageError
from detect.proposals.selective_search import check_installed


def needs_contrib() -> None:
    """Skip the test that calls this where selective search is not installed."""
    try:
        check_installed()
    except MissingPackageError as error:
        pytest.skip(str(error))
