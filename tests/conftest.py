"""Fixtures that several test files share."""

import os
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.weights_server import weights_server

from backbones.training.run_folder import RunFolder

# Two pytest workers on two cores: more threads each would only wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first backward pass counts the devices. After torch.export has put a false GPU in place it
# would start a thread for that, with which no process can be forked that trains.
torch.ones(1, requires_grad=True).sum().backward()


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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server in the place of the libraries' own, and empty caches."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    with weights_server() as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
