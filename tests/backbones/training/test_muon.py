import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.training.muon import Muon, muon_groups, orthogonalize


def polar_factor(matrix):
    """The nearest matrix with orthonormal rows or columns."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def random_matrix(rows, columns, singular_values, seed=0):
    rng = np.random.default_rng(seed)
    rank = min(rows, columns)
    left = np.linalg.qr(rng.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, rank)))[0]
    return (left * singular_values) @ right.T


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (12, 12)])
def test_singular_values_move_to_one_and_their_vectors_stay(shape):
    values = np.geomspace(1, 0.3, min(shape))
    matrix = random_matrix(*shape, values * 1e-3)
    result = orthogonalize(torch.from_numpy(matrix)[None])[0].numpy()
    after = np.linalg.svd(result, compute_uv=False)
    assert 0.6 < after.min() <= after.max() < 1.3
    # The same singular vectors: the polar factor of the result is that of the matrix.
    np.testing.assert_allclose(polar_factor(result), polar_factor(matrix), atol=1e-8)


def test_small_singular_values_grow_most():
    values = np.array([1, 0.01])
    matrix = random_matrix(2, 9, values)
    after = np.linalg.svd(orthogonalize(torch.from_numpy(matrix)[None])[0], compute_uv=False)
    assert after[1] / after[0] > 20 * values[1]


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 9), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(deadline=None)
def test_the_scale_of_the_gradient_does_not_matter(rows, columns, seed, scale):
    matrices = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, rows, columns)))
    torch.testing.assert_close(orthogonalize(matrices * scale), orthogonalize(matrices))


def test_each_matrix_is_treated_on_its_own():
    matrices = torch.randn(5, 3, 7)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone)


def test_a_zero_gradient_moves_nothing():
    assert orthogonalize(torch.zeros(2, 3, 4)).eq(0).all()


def muon(parameter, **options):
    return Muon([{"params": [parameter], "orthogonalize": True, "weight_decay": 0.1}], **options)


def test_steps_agree_with_timms_muon():
    """timm's iterates in bf16 and scales by 0.2 more; set alike, the steps are alike."""
    theirs_module = pytest.importorskip("timm.optim.muon")
    start = torch.randn(6, 5, 2, 2)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer = muon(ours, lr=0.01, momentum=0.8)
    reference = theirs_module.Muon(
        [{"params": [theirs], "use_muon": True}],
        lr=0.05,
        momentum=0.8,
        weight_decay=0.02,
        nesterov=True,
        ns_steps=3,
        ns_coefficients="original",
    )
    for _ in range(4):
        ours.grad = torch.randn(start.shape)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    moved, expected = (ours.detach() - start).flatten(), (theirs.detach() - start).flatten()
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.9995
    assert moved.norm() / expected.norm() == pytest.approx(1, abs=0.01)


def test_other_groups_are_adamws():
    start, gradients = torch.randn(3, 4), torch.randn(5, 3, 4)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    convolution = torch.nn.Parameter(torch.randn(2, 2))
    optimizer = Muon(
        [
            {"params": [convolution], "orthogonalize": True, "weight_decay": 0.0},
            {"params": [ours], "weight_decay": 0.2},
        ],
        lr=0.01,
    )
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.2)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        convolution.grad = torch.randn(2, 2)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert len(optimizer.param_groups) == 2


def test_state_continues_where_it_was_saved():
    def step(parameters, optimizer, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)
        )
        return list(model.parameters()), Muon(muon_groups(model, 0.1), lr=0.01)

    parameters, optimizer = make()
    step(parameters, optimizer, range(3))
    saved = [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())
    step(parameters, optimizer, range(3, 6))
    resumed, fresh = make()
    with torch.no_grad():
        for parameter, value in zip(resumed, saved[0], strict=True):
            parameter.copy_(value)
    fresh.load_state_dict(saved[1])
    step(resumed, fresh, range(3, 6))
    for parameter, expected in zip(resumed, parameters, strict=True):
        assert parameter.equal(expected)


def test_a_checkpoint_from_the_cpu_resumes_on_another_device():
    """Step counts that stayed behind would crash the fused step of AdamW there."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = Muon([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    elsewhere = torch.nn.Parameter(torch.ones(3, device="meta"))
    resumed = Muon([elsewhere], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert {state.device.type for state in resumed.state[elsewhere].values()} == {"meta"}


def test_only_convolutions_before_normalisation_are_orthogonalised():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 2, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(2, 2),
    )
    model[4].weight.requires_grad_(False)
    groups = {
        id(p): (group.get("orthogonalize", False), group["weight_decay"])
        for group in muon_groups(model, 0.3)
        for p in group["params"]
    }
    names = {name: groups.get(id(p)) for name, p in model.named_parameters()}
    assert names == {
        "0.weight": (True, 0.3),
        "1.weight": (False, 0.0),
        "1.bias": (False, 0.0),
        "2.weight": (False, 0.3),
        "2.bias": (False, 0.0),
        "4.weight": None,
        "4.bias": (False, 0.0),
    }


def test_a_convolution_is_the_matrix_of_its_filters():
    weight = torch.randn(6, 4, 1, 3)
    convolution = torch.nn.Parameter(weight.clone().contiguous(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(weight.flatten(1).clone())
    convolution.grad = torch.randn(6, 4, 1, 3).contiguous(memory_format=torch.channels_last)
    matrix.grad = convolution.grad.flatten(1).clone()
    for parameter in (convolution, matrix):
        muon(parameter, lr=0.1).step()
    torch.testing.assert_close(convolution.detach().flatten(1), matrix.detach())


def test_parameters_without_a_gradient_are_left_alone():
    used, unused = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    used.grad = torch.eye(2)
    group = {"params": [used, unused], "orthogonalize": True, "weight_decay": 0.5}
    Muon([group], lr=0.1).step()
    assert used.ne(1).all()
    assert unused.eq(1).all()
