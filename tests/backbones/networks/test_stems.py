import pytest
import torch
from torch import nn

from backbones import SPECS, create_backbone
from backbones.networks.stems import Stem, stage_geometry, stage_grids, stem_layers


def test_geometry_of_the_released_299_network():
    assert stage_geometry(SPECS["inception_v3"]) == [(8, 13.5), (16, 21.5), (32, 37.5)]


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("inception_v3", [8, 16, 32]),
        ("inception_v3_151", [4, 8, 16]),
        ("inception_v3_79", [2, 4, 8]),
        ("inception_v3_79_naive_table1", [8, 16, 32]),
        ("inception_v3_79_table1", [2, 4, 8]),
        ("inception_v2", [8, 16, 32]),
    ],
)
def test_strides(name, strides):
    assert [geometry.stride for geometry in stage_geometry(SPECS[name])] == strides


def linear_twin(name):
    """The network with averages for maxima and all weights equal: its gradient is symmetric."""
    model = create_backbone(name, num_classes=0, width=0.25).double().eval()
    for parent in list(model.modules()):
        for child_name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, child_name, nn.AvgPool2d(child.kernel_size, child.stride))
            if isinstance(child, nn.Conv2d):
                nn.init.constant_(child.weight, 1 / child.weight[0].numel())
    # The blocks' long kernels would reach over the edges of any image of a reasonable size; that
    # they move nothing is another test.
    for stage in (model.stage_a, model.stage_b):
        channels = [block.out_channels for block in stage]
        projection = nn.Conv2d(stage[0].branch1x1.conv.in_channels, channels[-1], 1, bias=False)
        nn.init.ones_(projection.weight)
        setattr(model, "stage_a" if stage is model.stage_a else "stage_b", projection.double())
    model.stage_c = nn.Identity()
    return model


@pytest.mark.parametrize("name", [name for name in SPECS if "naive" not in name])
def test_offsets_are_the_centres_of_the_gradients(name, monkeypatch):
    monkeypatch.setattr("backbones.networks.blocks.F.max_pool2d", torch.nn.functional.avg_pool2d)
    torch.manual_seed(0)
    model = linear_twin(name)
    spec = SPECS[name]
    size = spec.min_size * 4 + 3
    x = torch.rand(1, 3, size, size, dtype=torch.double, requires_grad=True)
    for stage, (stride, offset) in zip(model.forward_stages(x), stage_geometry(spec), strict=True):
        row, column = stage.shape[-2] // 2, stage.shape[-1] // 2 - 1
        (gradient,) = torch.autograd.grad(stage[0, :, row, column].sum(), x, retain_graph=True)
        weight = gradient[0].sum(0)
        assert weight[0].sum() == weight[-1].sum() == 0, "the image must hold the receptive field"
        pixels = torch.arange(size, dtype=torch.double) + 0.5
        centre_y = (weight.sum(1) * pixels).sum() / weight.sum()
        centre_x = (weight.sum(0) * pixels).sum() / weight.sum()
        assert centre_y.item() == pytest.approx(offset + stride * row, abs=1e-6)
        assert centre_x.item() == pytest.approx(offset + stride * column, abs=1e-6)


@pytest.mark.parametrize("layout", ["", "_table1"])
def test_naive_geometry_is_that_of_299(layout):
    naive, full = (SPECS[f"inception_v3{v}{layout}"] for v in ("_79_naive", ""))
    assert stage_geometry(naive) == stage_geometry(full)


def test_whole_network_is_centred_on_an_image_it_covers():
    # 299 fits the 299 network without a pixel left over, so the grids' middles are the image's.
    for (stride, offset), grid in zip(
        stage_geometry(SPECS["inception_v3"]), SPECS["inception_v3"].grids, strict=True
    ):
        assert offset + stride * (grid - 1) / 2 == 299 / 2


@pytest.mark.parametrize("name", SPECS)
def test_grids_at_any_size(name):
    with torch.device("meta"):
        model = create_backbone(name, width=0.25).eval()
        for height, width in [(75, 79), (96, 151), (224, 333)]:
            stages = model.forward_stages(torch.empty(1, 3, height, width))
            assert stage_grids(model.spec, height) == tuple(s.shape[-2] for s in stages)
            assert stage_grids(model.spec, width) == tuple(s.shape[-1] for s in stages)


def test_grids_of_too_small_an_image():
    assert stage_grids(SPECS["inception_v3_79"], 20)[2] == 0
    assert stage_grids(SPECS["inception_v3"], 2) == (0, 0, 0)


def test_first_pool_is_gone_at_79_only():
    names = {
        name: [layer.name for layer in stem_layers(SPECS[f"inception_v3{name}"])]
        for name in ("", "_151", "_79")
    }
    assert names[""] == names["_151"]
    assert names["_79"] == [name for name in names[""] if name != "pool1"]


def test_stem_channels():
    with torch.device("meta"):
        assert Stem(SPECS["inception_v3"]).out_channels == 192
        assert Stem(SPECS["inception_v3_table1"], width=0.25).out_channels == 80
