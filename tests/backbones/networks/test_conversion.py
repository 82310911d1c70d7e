import copy

import pytest
import timm
import torch
import torchvision
from helpers.trained_network import randomise
from torch import nn

from backbones import (
    UserError,
    create_backbone,
    from_torchvision,
    to_torchvision,
    warm_start,
)

CLASSES = 10


def torchvision_model():
    return torchvision.models.Inception3(
        CLASSES, aux_logits=True, transform_input=False, init_weights=False, dropout=0.0
    )


def timm_model():
    return timm.create_model("inception_v3", num_classes=CLASSES, aux_logits=True)


@pytest.fixture(scope="module", params=[torchvision_model, timm_model])
def reference(request):
    """(Their network, ours)."""
    ours = create_backbone("inception_v3", num_classes=CLASSES, aux="batch_norm")
    return request.param(), ours


def main_logits(model, x):
    """timm's network returns its auxiliary logits in evaluation too."""
    logits = model.eval()(x)
    return logits[0] if isinstance(logits, tuple) else logits


@pytest.mark.parametrize("way", ["from", "to"])
def test_same_logits(reference, way):
    theirs, ours = reference
    if way == "from":
        ours.load_state_dict(from_torchvision(randomise(theirs, seed=0).state_dict()))
    else:
        theirs.load_state_dict(to_torchvision(randomise(ours, seed=1).state_dict()))
    x = torch.rand(1, 3, 299, 305, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        expected = main_logits(theirs, x)
        assert expected.std() > 0.01, "a constant output would prove nothing"
        torch.testing.assert_close(main_logits(ours, x), expected, atol=1e-4, rtol=0)


def test_same_gradients(reference):
    theirs, ours = reference
    ours.load_state_dict(from_torchvision(randomise(theirs, seed=0).state_dict()))
    # Doubles, as batches of two make what comes before a normalisation sensitive to rounding.
    theirs, ours = copy.deepcopy(theirs).double(), copy.deepcopy(ours).double()
    # The smallest image and batch that the auxiliary head takes in training.
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    target = torch.tensor([1, 8])
    gradients = []
    for model in (theirs.train(), ours.train()):
        model.zero_grad()
        logits, aux_logits = model(x)
        loss = nn.functional.cross_entropy(logits, target)
        (loss + 0.3 * nn.functional.cross_entropy(aux_logits, target)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    renamed = from_torchvision(gradients[0])
    assert renamed.keys() == gradients[1].keys()
    for name, expected in renamed.items():
        error = (gradients[1][name] - expected).norm() / (expected.norm() + 1e-6)
        assert error < 1e-8, name
    counters = {int(b) for n, b in ours.named_buffers() if n.endswith("num_batches_tracked")}
    assert counters == {8}


def test_maps_are_each_others_inverse():
    state = torchvision_model().state_dict()
    ours = from_torchvision(state)
    with torch.device("meta"):
        own = create_backbone("inception_v3", num_classes=CLASSES, aux="batch_norm").state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in own.items()}
    back = to_torchvision(ours)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_old_files_without_counters():
    state = torchvision_model().state_dict()
    without = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    completed = from_torchvision(without)
    assert completed.keys() == from_torchvision(state).keys()
    model = create_backbone("inception_v3", num_classes=CLASSES, aux="batch_norm")
    body = {n: t for n, t in completed.items() if not n.endswith("num_batches_tracked")}
    assert warm_start(model, body) == []


def test_map_refuses_strange_names():
    with pytest.raises(UserError, match=r"cannot rename 'layer1.0.conv1.weight'"):
        from_torchvision({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"cannot rename 'stem.conv6.conv.weight'"):
        to_torchvision({"stem.conv6.conv.weight": torch.zeros(1)})


def test_warm_start_from_torchvision():
    model = create_backbone("inception_v3_79", num_classes=3)
    fresh = warm_start(model, from_torchvision(torchvision_model().state_dict()))
    assert fresh == ["fc.weight", "fc.bias"]
