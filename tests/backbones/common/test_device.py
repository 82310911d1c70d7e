import pytest
import torch

from backbones.common.device import resolve_device, resolve_precision
from backbones.common.errors import UserError


def test_auto_takes_a_gpu_where_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "meta"])
def test_a_device_of_another_kind_is_refused(name):
    with pytest.raises(UserError, match="device must be auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_a_missing_gpu_is_refused():
    with pytest.raises(UserError, match=r"device cuda:99: this machine has \d+ CUDA GPUs"):
        resolve_device("cuda:99")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_named_precision_is_taken_as_it_is(precision):
    assert resolve_precision(precision, torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_only_with_instructions_for_it(monkeypatch, capabilities, expected):
    # A processor cannot be changed; this is the one place where what it says is replaced.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == expected


def test_this_machines_capabilities_have_the_names_that_are_asked_for():
    known = torch.cpu.get_capabilities()
    if known["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16"} <= known.keys()
