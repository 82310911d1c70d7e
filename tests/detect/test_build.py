"""From a configuration to a detector: what each key of the model makes of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.contrib import needs_contrib

from backbones import create_backbone, save_backbone
from detect.build import build_detector
from detect.config import ModelConfig
from detect.proposals import (
    GridConfig,
    GridProposer,
    LearnedConfig,
    LearnedProposer,
    SelectiveSearchConfig,
    SelectiveSearchProposer,
)

NAIVE = "inception_v3_79_naive"
SMALL = LearnedConfig(tile_size=96, channels=16)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A crop network's weights, of another variant than those that start from it."""
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("backbone") / "b.safetensors"
    save_backbone(path, create_backbone("inception_v3_79", num_classes=0, width=0.25))
    return path


def test_the_crop_network_is_the_configurations():
    for variant, width, dropout in ((NAIVE, 0.5, 0.3), ("inception_v3_151", 0.25, 0.0)):
        config = ModelConfig(variant, width=width, dropout=dropout, proposer="grid")
        network = build_detector(config, 3).backbone
        assert network.spec.name == variant
        assert network.num_features == 2048 * width
        assert network.dropout == dropout


def test_it_starts_from_the_files_weights(backbone):
    torch.manual_seed(0)
    config = ModelConfig(NAIVE, weights=str(backbone), proposer="grid")
    state = build_detector(config, 3).backbone.state_dict()
    torch.manual_seed(9)
    start = create_backbone("inception_v3_79", num_classes=0, width=0.25).state_dict()
    assert state.keys() == start.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in start.items())


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("none", set()), ("stage_a", {"stem", "stage_a"})],
)
def test_frozen_parts_learn_nothing(freeze, frozen, backbone, caplog):
    """Neither by gradients nor by the statistics of what goes through them."""
    caplog.set_level("INFO")
    trunk = replace(SMALL, weights=str(backbone), freeze=freeze)
    config = ModelConfig(NAIVE, weights=str(backbone), freeze=freeze, learned=trunk)
    model = build_detector(config, 3).train()
    started = [line for line in caplog.messages if "started from" in line]
    for line, role in zip(started, ("crop network", "proposer's trunk"), strict=True):
        assert line.startswith(f"{role} started from {backbone}: ")
    for network in (model.backbone, model.proposer.trunk):
        parameters = network.named_parameters()
        assert {name.split(".")[0] for name, p in parameters if not p.requires_grad} == frozen
        layers = [(n, m) for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {name.split(".")[0] for name, layer in layers if not layer.training} == frozen


def test_each_proposer_is_built_with_its_own_settings():
    learned = build_detector(ModelConfig(learned=SMALL), 2).proposer
    assert isinstance(learned, LearnedProposer)
    assert learned.config == SMALL
    grid = GridConfig(step=1.0)
    proposer = build_detector(ModelConfig(proposer="grid", grid=grid), 2).proposer
    assert isinstance(proposer, GridProposer)
    assert proposer.config == grid
    assert (
        build_detector(ModelConfig(proposer="precomputed", precomputed="x.json"), 2).proposer
        is None
    )


def test_selective_search_is_built_with_its_settings():
    needs_contrib()
    search = SelectiveSearchConfig(mode="quality", top_n=9)
    proposer = build_detector(
        ModelConfig(proposer="selective_search", selective_search=search), 2
    ).proposer
    assert isinstance(proposer, SelectiveSearchProposer)
    assert proposer.config == search


@torch.no_grad()
def test_learned_proposals_are_so_many_and_no_worse():
    """In use and in training, of one image; below the threshold there are none in use."""
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    target = {"boxes": torch.tensor([[10.0, 10, 60, 60]])}

    def found(**options) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        proposer = build_detector(ModelConfig(learned=SMALL, **options), 2).proposer
        in_training = proposer.train().forward_train([image], [target])[0][0]
        return proposer.eval()([image])[0].scores, in_training.scores

    scores, in_training = found(proposals_per_image=7, proposals_per_image_train=11)
    assert (len(scores), len(in_training)) == (7, 11)
    threshold = float(scores[2:4].mean())
    few, in_training = found(
        proposals_per_image=7, proposals_per_image_train=11, proposal_score_thresh=threshold
    )
    torch.testing.assert_close(few, scores[scores >= threshold])
    assert 0 < len(few) < 7
    assert len(in_training) == 11
