import pytest
import torch

from backbones.common import cores


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("0::/", {"": "200000 100000"}, 2),
        ("0::/", {"": "150000 100000"}, 2),  # a part of a core is one
        ("0::/", {"": "50000 100000"}, 1),
        ("0::/", {"": "max 100000"}, 8),
        ("0::/", {"": "6400000 100000"}, 8),
        ("0::/", {}, 8),
        ("5:cpu:/job\n0::/job/step", {"job": "300000 100000", "job/step": "max 100000"}, 3),
        ("5:cpu:/job", {"": "100000 100000"}, 8),  # of version 1 alone
        (None, {"": "100000 100000"}, 8),
    ],
)
def test_threads_are_no_more_than_the_quota(
    own, groups, expected, tmp_path, monkeypatch, threads_of_torch
):
    monkeypatch.setattr(cores, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    if own is not None:
        (tmp_path / "own").write_text(own + "\n")
    for name, quota in groups.items():
        (tmp_path / "cgroup" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name / "cpu.max").write_text(quota + "\n")
    torch.set_num_threads(8)
    cores.limit_threads_to_quota()
    assert torch.get_num_threads() == expected
