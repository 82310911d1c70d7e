"""Networks that timm pushes to a local server in the place of the Hugging Face hub."""

import json

import timm
import torch
from helpers.trained_network import assert_same_tensors, randomise, small

import backbones
from backbones import load_backbone, save_backbone


def test_timm_pushes_our_networks_and_they_are_started_from_their_name(hub, tmp_path):
    save_backbone(tmp_path / "net.safetensors", randomise(small("inception_v3_79"), seed=0))
    loaded = load_backbone(tmp_path / "net.safetensors")
    own = {"num_classes": loaded.num_classes, "width": loaded.width}
    model = timm.create_model("inception_v3_79", **own).eval()
    model.load_state_dict(loaded.state_dict())
    timm.models.push_to_hf_hub(model, "owner/net", safe_serialization=True)
    assert hub.files.keys() == {"model.safetensors", "config.json", "README.md"}
    config = json.loads(hub.files["config.json"])
    assert config["architecture"] == "inception_v3_79"
    assert config["num_classes"] == model.num_classes
    started = backbones.start_backbone("inception_v3_79", "hf-hub:owner/net", **own)
    assert_same_tensors(started.state_dict(), model.state_dict())
    assert (started.spec.mean, started.spec.std) == (model.spec.mean, model.spec.std)
    made = timm.create_model("hf-hub:owner/net", pretrained=True, width=0.25).eval()
    image = torch.randint(0, 256, (1, 3, 79, 79), dtype=torch.uint8)
    torch.testing.assert_close(made(image), loaded(image))
