"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

from backbones.training.run_folder import RunFolder

# Two pytest workers on two cores: more threads each would only wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


DRAW_CURVES = RunFolder.draw_curves


@pytest.fixture(scope="session", autouse=True)
def _no_curves():
    """Most of the time of a run of seconds would be the picture of its curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "draw_curves", lambda self: None)
        yield


@pytest.fixture
def curves_are_drawn(monkeypatch):
    """As they are outside of tests."""
    monkeypatch.setattr(RunFolder, "draw_curves", DRAW_CURVES)


@pytest.fixture
def threads_of_torch():
    """Sets torch's number of threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Root of BCCD in VOC layout; skips where the data is not at hand."""
    data = Path(os.environ.get("LOWRES_DATA", Path(__file__).parents[2] / "shared" / "data"))
    root = data / "bccd" / "BCCD"
    if not root.is_dir():
        pytest.skip(f"BCCD is not at {root}: set LOWRES_DATA to the folder that holds bccd/BCCD")
    return root
