from functools import cache

import pytest
import torch

from backbones import SPECS, create_backbone
from backbones.networks.cost import count_multiply_adds as multiply_adds

# Multiply-adds in billions and parameters in millions, without auxiliary head, 1000 classes.
# 5.71 G and 23.83 M are what torchvision publishes for its `inception_v3`.
COSTS = {
    "inception_v3": (5.713, 23.835),
    "inception_v3_151": (5.713, 23.835),
    "inception_v3_79": (5.362, 23.835),
    "inception_v3_79_naive": (0.212, 23.835),
    "inception_v3_table1": (6.533, 26.102),
    "inception_v3_151_table1": (6.533, 26.102),
    "inception_v3_79_table1": (6.201, 26.102),
    "inception_v3_79_naive_table1": (0.235, 26.102),
    "inception_v2": (5.300, 23.815),
}


@cache
def build_on_meta(name):
    with torch.device("meta"):
        return create_backbone(name).eval()


def conv_multiply_adds(out_size, kernel, cin, cout):
    return out_size**2 * kernel**2 * cin * cout


@pytest.mark.parametrize("name", SPECS)
def test_spec_describes_the_built_network(name):
    spec = SPECS[name]
    model = build_on_meta(name)
    stages = model.forward_stages(torch.empty(2, 3, spec.input_size, spec.input_size).to("meta"))
    assert spec.name == name
    assert [tuple(s.shape[-2:]) for s in stages] == [(grid, grid) for grid in spec.grids]
    assert model.num_features == spec.num_features == stages[-1].shape[1]


@pytest.mark.parametrize("name", SPECS)
def test_min_size_is_minimal(name, monkeypatch):
    model = build_on_meta(name)
    size = model.spec.min_size
    stages = model.forward_stages(torch.empty(1, 3, size, size, device="meta"))
    assert [s.shape[-1] for s in stages] == [7, 3, 1]
    # Without the check of the size, one pixel less leaves nothing for the C blocks.
    monkeypatch.setattr("backbones.networks.inception.check_images", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"too small|Kernel size"):
        model(torch.empty(1, 3, size, size - 1, device="meta"))


@pytest.mark.parametrize("name", SPECS)
def test_cost(name):
    model = build_on_meta(name)
    giga, mega = COSTS[name]
    assert multiply_adds(model, model.spec.input_size) / 1e9 == pytest.approx(giga, abs=1e-3)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(mega, abs=1e-3)


def test_receptive_fields_cost_the_same():
    costs = [COSTS[name][0] for name in ("inception_v3", "inception_v3_151", "inception_v3_79")]
    assert max(costs) / min(costs) < 1.07
    assert COSTS["inception_v3"][1] < 25
    assert COSTS["inception_v3_79_naive"][0] < 0.05 * min(costs)


def test_v2_differs_from_v3_by_the_first_convolutions():
    one_7x7 = conv_multiply_adds(147, 7, 3, 64)
    three_3x3 = (
        conv_multiply_adds(149, 3, 3, 32)
        + conv_multiply_adds(147, 3, 32, 32)
        + conv_multiply_adds(147, 3, 32, 64)
    )
    difference = multiply_adds(build_on_meta("inception_v3"), 299) - multiply_adds(
        build_on_meta("inception_v2"), 299
    )
    assert difference == three_3x3 - one_7x7


def test_table1_differs_from_released_by_stem_first_block_and_fifth_b_block():
    released, table1 = build_on_meta("inception_v3"), build_on_meta("inception_v3_table1")
    stem = (
        conv_multiply_adds(71, 3, 64, 80)
        + conv_multiply_adds(35, 3, 80, 192)
        + conv_multiply_adds(35, 3, 192, 288)
        - conv_multiply_adds(73, 1, 64, 80)
        - conv_multiply_adds(71, 3, 80, 192)
    )
    # Four 1×1 convolutions read the input of an A block; the first block's pooled branch doubles.
    reading = 64 + 48 + 64
    first_a = conv_multiply_adds(35, 1, reading, 288 - 192) + conv_multiply_adds(
        35, 1, 1, 64 * 288 - 32 * 192
    )
    second_a = conv_multiply_adds(35, 1, reading + 64, 288 - 256)
    c7 = 160
    fifth_b = 17**2 * (
        768 * (192 + c7 + c7 + 192) + 7 * (c7 * c7 + c7 * 192) + 7 * (3 * c7 * c7 + c7 * 192)
    )
    difference = multiply_adds(table1, 299) - multiply_adds(released, 299)
    assert difference == stem + first_a + second_a + fifth_b


@pytest.mark.parametrize("layout", ["released", "table1"])
def test_receptive_fields_share_parameter_names_and_shapes(layout):
    shapes = [
        [(name, tensor.shape) for name, tensor in build_on_meta(spec.name).state_dict().items()]
        for spec in SPECS.values()
        if spec.layout == layout
    ]
    assert len(shapes) == 4
    assert all(other == shapes[0] for other in shapes[1:])
