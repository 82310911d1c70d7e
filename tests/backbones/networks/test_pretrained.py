"""Starting from weights of other programs: their files, and names by way of a local server."""

import hashlib
import io
import json
import logging

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from helpers.trained_network import assert_same_tensors, randomise, small
from helpers.weights_server import weights_server

from backbones import UserError, save_backbone, start_backbone, to_torchvision
from backbones.networks.normalization import normalize

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def network():
    """A narrow network for 299 pixels, and its weights under torchvision's names."""
    model = randomise(small("inception_v3"), seed=0)
    return model, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def theirs(network):
    return to_torchvision(network[1])


def start(weights, name="inception_v3", **kwargs):
    return start_backbone(name, weights, **({"num_classes": 10, "width": 0.25} | kwargs))


def pickled(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@torch.no_grad()
def test_the_logits_of_torchvisions_network_on_the_images_that_it_wants(tmp_path):
    """It normalises by ImageNet's statistics, and once more inside by `transform_input`."""
    model = torchvision.models.Inception3(5, transform_input=True, init_weights=False)
    torch.save(randomise(model, seed=1).eval().state_dict(), tmp_path / "weights.pth")
    ours = start(tmp_path / "weights.pth", num_classes=5, width=1.0).eval()
    image = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    expected = model(normalize(image, *IMAGENET))
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(image), expected, atol=1e-4, rtol=0)


def test_files_and_folders(network, theirs, tmp_path):
    model, state = network
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.items()}}, tmp_path / "a.pth")
    safetensors.torch.save_file(theirs, tmp_path / "b.safetensors")
    (tmp_path / "run").mkdir()
    save_backbone(tmp_path / "run" / "last.safetensors", model)
    for weights in ("a.pth", "b.safetensors", "run"):
        assert_same_tensors(start(tmp_path / weights).state_dict(), state)
    with pytest.raises(UserError, match=r"neither best.safetensors nor last"):
        start(tmp_path)


def test_weights_of_299_pixels_by_their_names_start_a_stem_for_fewer(network, theirs, tmp_path):
    safetensors.torch.save_file(theirs, tmp_path / "b.safetensors")
    save_backbone(tmp_path / "own.safetensors", network[0])
    for name in ("inception_v3_79", "inception_v3_151"):
        own = start(tmp_path / "own.safetensors", name).state_dict()
        assert not torch.equal(own["stem.conv1.conv.weight"], network[1]["stem.conv1.conv.weight"])
        assert_same_tensors(start(tmp_path / "b.safetensors", name).state_dict(), own)


def test_gaps_are_listed_by_block_and_start_at_random(theirs, tmp_path, caplog):
    gone = ("Mixed_5b.branch", "Mixed_7c.branch3x3dbl_2", "Conv2d_2b", "fc")
    state = {name: tensor for name, tensor in theirs.items() if not name.startswith(gone)}
    safetensors.torch.save_file(state, tmp_path / "gaps.safetensors")
    with caplog.at_level(logging.WARNING):
        model = start(tmp_path / "gaps.safetensors")
    assert [record.getMessage() for record in caplog.records] == [
        "not in the given weights, freshly initialised: fc.weight, fc.bias",
        "the given weights have gaps, started at random: stem (conv3), stage_a.0 (7 layers), "
        "stage_c.1 (branch3x3dbl_2)",
    ]
    assert torch.equal(model.stage_c[0].branch1x1.bn.bias, state["Mixed_7b.branch1x1.bn.bias"])
    assert model.stem.conv3.conv.weight.std() > 0


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer1.conv.weight": torch.zeros(2)}, "do not fit inception_v3"),
        ({"Mixed_5b.x": torch.zeros(1), "odd.x": torch.zeros(1)}, "cannot rename 'odd.x'"),
        ({"Conv2d_1a_3x3.conv.weight": torch.full((1,), torch.nan)}, "holds NaN"),
        ({"epoch": 3}, "'epoch' is no tensor"),
        ([1, 2], "not a state dict .*: it is something else"),
        (
            b"<!DOCTYPE html>",
            "not a state dict .*: it is something else, or holds more than tensors",
        ),
        ({"bn.running_var": torch.full((2,), -1.0)}, "bn.running_var holds a variance below 0"),
        ({"a": Malicious()}, "without executing"),
        (b"PK\x03\x04 cut off", "not a state dict"),
        (b"", "not a state dict"),
    ],
)
def test_what_is_no_state_dict_of_it_is_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "w.pth"
    path.write_bytes(content if isinstance(content, bytes) else pickled(content))
    with pytest.raises(UserError, match=message) as error:
        start(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_a_flipped_bit_of_a_state_dict_is_seen(theirs, tmp_path):
    data = bytearray(pickled(theirs))
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    start(path)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"w\.pth: .* does not have the digest it was written with"):
        start(path)


@pytest.fixture
def torchvisions(hub, theirs, monkeypatch):
    """Name of the file that torchvision would download."""
    data = pickled(theirs)
    name = f"weights-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    hub.files[name] = data
    value = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(value, "url", f"{hub.url}/{name}")
    return name


def test_torchvisions_weights_by_name(hub, torchvisions, network):
    for _ in range(2):  # the second time from the disk
        model = start("torchvision:IMAGENET1K_V1")
        assert_same_tensors(model.state_dict(), network[1])
    assert hub.requests == [f"GET {torchvisions}"]
    assert (model.spec.mean, model.spec.std) == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="expected torchvision:IMAGENET1K_V1"):
        start("torchvision:V2")


@pytest.mark.parametrize("fault", ["other content", "cut", "gone"])
def test_a_download_of_torchvisions_that_fails(fault, hub, torchvisions, tmp_path, network):
    data = hub.files[torchvisions]
    if fault == "other content":
        hub.files[torchvisions] = data[:-1] + b"x"
    elif fault == "cut":
        hub.cut.add(torchvisions)
    else:
        del hub.files[torchvisions]
    with pytest.raises(
        UserError, match="cannot be downloaded, or the downloaded file is damaged"
    ) as error:
        start("torchvision:IMAGENET1K_V1")
    kept = tmp_path / "torch" / "checkpoints"
    assert f"download {hub.url}/{torchvisions} to {kept / torchvisions}" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(kept.iterdir()) == []
    # What the line says to do, helps.
    (kept / torchvisions).write_bytes(data)
    assert_same_tensors(start("torchvision:IMAGENET1K_V1").state_dict(), network[1])


def describe(architecture, mean, std) -> bytes:
    config = {"architecture": architecture, "num_classes": 10}
    return json.dumps(config | {"pretrained_cfg": {"mean": mean, "std": std}}).encode()


@pytest.mark.parametrize("name", ["hf-hub:owner/name", "timm:inception_v3.gluon_in1k"])
def test_weights_of_the_hub_want_images_as_they_say(name, hub, theirs, network, tmp_path):
    files = {
        "config.json": describe("inception_v3", *IMAGENET),
        "model.safetensors": safetensors.torch.save(theirs),
    }
    hub.files |= files
    model = start(name)
    assert_same_tensors(model.state_dict(), network[1])
    assert (model.spec.mean, model.spec.std) == IMAGENET
    # By hand into a folder is the same.
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    by_hand = start(tmp_path / "model.safetensors")
    assert (by_hand.spec.mean, by_hand.spec.std) == IMAGENET


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be downloaded.*model.safetensors and config.json from https://hugg.*o/n"),
        ("gone", "cannot be downloaded"),
        ("resnet", "hf-hub:o/n: weights of 'resnet50': expected"),
        ("no mean", "hf-hub:o/n: broken description of a network: no 'mean'"),
        ("name", "timm:resnet50.a1_in1k: expected timm:inception_v3"),
    ],
)
def test_what_the_hub_has_not_is_one_line(fault, message, hub, theirs):
    hub.files["config.json"] = describe("inception_v3", *IMAGENET)
    hub.files["model.safetensors"] = safetensors.torch.save(theirs)
    if fault == "cut":
        hub.cut.add("model.safetensors")
    elif fault == "gone":
        hub.files.clear()
    elif fault == "resnet":
        hub.files["config.json"] = describe("resnet50", *IMAGENET)
    elif fault == "no mean":
        hub.files["config.json"] = b'{"architecture": "inception_v3", "pretrained_cfg": {}}'
    with pytest.raises(UserError, match=message) as error:
        start("timm:resnet50.a1_in1k" if fault == "name" else "hf-hub:o/n")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "nobody", "a/../b", "a/b@"])
def test_what_is_no_name_is_not_asked_for(name, hub):
    with pytest.raises(UserError, match="expected hf-hub:OWNER/NAME or"):
        start(f"hf-hub:{name}")
    assert hub.requests == []


def test_without_a_network_the_line_says_what_to_download(hub, torchvisions):
    hub.files.clear()
    names = ("torchvision:IMAGENET1K_V1", "hf-hub:o/n")
    with weights_server() as gone:
        pass
    value = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.value
    value.url = value.url.replace(hub.url, gone.url)
    huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE = gone.url + "/{repo_id}/{filename}"
    for name in names:
        with pytest.raises(UserError, match=f"{name}: cannot be downloaded.* or download "):
            start(name)


def test_timm_starts_our_variants_from_torchvisions_weights(hub, torchvisions, network, tmp_path):
    """By its own download, of the address that our entry has, and with the stem made for it."""
    assert timm.get_pretrained_cfg("inception_v3_79").url.startswith("https://download.pytorch.org")
    made = {
        classes: timm.create_model(
            "inception_v3_79",
            pretrained=True,
            num_classes=classes,
            width=0.25,
            pretrained_cfg_overlay={"url": f"{hub.url}/{torchvisions}", "num_classes": 10} | image,
        )
        for classes, image in ((10, {}), (3, {"mean": IMAGENET[0], "std": IMAGENET[1]}))
    }
    expected = start("torchvision:IMAGENET1K_V1", "inception_v3_79").state_dict()
    assert_same_tensors(made[10].state_dict(), expected)
    assert (made[3].spec.mean, made[3].spec.std) == IMAGENET
    fresh = made[3].state_dict()
    # Statistics are matched on photographs, which it sees normalised otherwise.
    others = {name for name in expected if not torch.equal(expected[name], fresh[name])}
    others = {name for name in others if "running" not in name}
    assert others == {"fc.weight", "fc.bias"}
