import itertools

import pytest
import torch

from backbones import SPECS, create_backbone
from backbones.benchmarks.input_pipelines import make_jpegs, pipelines
from backbones.benchmarks.peak_memory import peak_memory
from backbones.benchmarks.peers import (
    CLASSES,
    NetworkForm,
    fold_peer,
    inference_forms,
    peer_network,
)
from backbones.benchmarks.timing import matrix_peak, time_interleaved
from backbones.networks.conversion import from_torchvision
from backbones.networks.cost import count_multiply_adds

RELEASED = [name for name, spec in SPECS.items() if spec.layout == "released"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("variant", RELEASED)
@pytest.mark.parametrize("package", ["torchvision", "timm"])
@torch.inference_mode()
def test_peers_are_the_same_networks(package, variant):
    torch.manual_seed(0)
    peer = peer_network(package, variant).eval()
    ours = create_backbone(variant, num_classes=CLASSES).eval()
    ours.load_state_dict(from_torchvision(peer.state_dict()))
    size = ours.input_size
    assert count_multiply_adds(peer, size) == count_multiply_adds(ours, size)
    x = torch.randn(1, 3, size, size)
    expected = peer(x)
    # timm's random weights give logits of thousands.
    assert (ours(x) - expected).norm() < 1e-4 * expected.norm()
    folded = fold_peer(peer)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (folded(x) - expected).norm() < 1e-4 * expected.norm()


def is_quick(one: NetworkForm) -> bool:
    """All that is not OpenVINO's, whose conversions take seconds, and one of those; ours in it are
    run by the tests of the tool."""
    return "OpenVINO" not in one.name or (one.name, one.precision) == (
        "torchvision in OpenVINO",
        "bf16",
    )


@pytest.mark.parametrize(
    "quick", [True, pytest.param(False, marks=pytest.mark.large)], ids=["quick", "OpenVINO's"]
)
def test_every_form_runs(quick):
    forms = inference_forms("inception_v3_79_naive", 1.0, 2, CPU, compiled=False)
    names = {(one.name, one.precision) for one in forms}
    assert names >= {
        ("torchvision", "fp32"),
        ("torchvision, channels_last, autocast", "bf16"),
        ("timm, channels_last, folded", "bf16"),
        ("ours as trained", "fp32"),
        ("ours deployed", "bf16"),
    }
    assert len(names) == len(forms)
    chosen = [one for one in forms if is_quick(one) == quick]
    assert len(chosen) >= (8 if quick else 3)
    for one in chosen:
        found = one.make()()
        logits = found if isinstance(found, torch.Tensor) else torch.from_numpy(found[0])
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()


def test_no_peer_of_another_layout():
    with pytest.raises(ValueError, match="timm has no network of the layout of inception_v2"):
        peer_network("timm", "inception_v2")


def test_calls_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = time_interleaved(calls, 3, CPU)
    assert seconds.keys() == calls.keys()
    assert all(0 < value < 1 for value in seconds.values())
    # After the first calls, blocks of one and the other alternate: as many blocks as repeats.
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes == 2 * 3 + 1


def test_the_matrix_peak_is_of_this_machine():
    assert 1e8 < matrix_peak(torch.float32, CPU, (128, 256)) < 1e14


@pytest.mark.large
def test_peak_memory_grows_with_the_batch():
    names = [one.name for one in inference_forms("inception_v3_79", 0.25, 1, CPU, compiled=False)]
    index = names.index("ours as trained")
    small, large = (peak_memory("inception_v3_79", 0.25, size, CPU, index) for size in (1, 64))
    # 64 maps of 75 by 75 with 16 channels in fp32, a few at a time.
    assert 2e7 < large - small < 2e9


def test_input_pipelines_give_crops_of_the_same_size(tmp_path):
    make_jpegs(tmp_path / "made", 2)
    examples = {name: f(1) for name, f in pipelines(tmp_path, 32).items()}
    peers = {"torchvision", "torchvision v2", "timm", "timm with prefetcher"}
    assert set(examples) == {"ours"} | peers
    assert {tuple(example[0].shape) for example in examples.values()} == {(3, 32, 32)}
