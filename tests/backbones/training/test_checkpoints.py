import random

import pytest
import torch
from helpers.full_disk import full_disk
from helpers.tiny_run import train

from backbones.common.errors import UserError
from backbones.training.checkpoints import load_last_checkpoint, save_checkpoint


def test_only_the_newest_checkpoints_stay(tmp_path):
    train(tmp_path / "run", epochs=1, keep_checkpoints=3)
    steps = sorted(int(path.stem[5:]) for path in (tmp_path / "run/checkpoints").iterdir())
    assert steps == [9, 10, 11]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": torch.full((1000,), float(step)), "step": step})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    checkpoint = load_last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 2
    assert "cannot read checkpoint" in caplog.text


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, {"step": step})
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match="none of the 2 checkpoints can be read"):
        load_last_checkpoint(tmp_path)


def test_a_damaged_checkpoint_does_not_push_out_newer_ones(tmp_path):
    for step in (1, 20):
        save_checkpoint(tmp_path, step, {"step": step})
    (tmp_path / "step_0000000020.pt").write_bytes(b"bad")
    load_last_checkpoint(tmp_path)
    for step in (2, 3):
        save_checkpoint(tmp_path, step, {"step": step})
    checkpoint = load_last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 3


@pytest.mark.parametrize("damage", ["a flipped bit", "a zeroed page", "a cut"])
def test_no_damage_is_resumed_from(tmp_path, damage, caplog):
    """At whatever place: what is read is one of the states that were written, bit for bit."""
    states = {}
    for step in (1, 2):
        states[step] = {"x": torch.rand(4000, generator=torch.manual_seed(step)), "step": step}
        newest = save_checkpoint(tmp_path, step, states[step])
    whole, place, fallbacks = newest.read_bytes(), random.Random(damage), 0
    for _ in range(60):
        data, at = bytearray(whole), place.randrange(len(whole))
        if damage == "a flipped bit":
            data[at] ^= 1 << place.randrange(8)
        elif damage == "a zeroed page":
            start = at // 4096 * 4096
            data[start : start + 4096] = bytes(len(data[start : start + 4096]))
        else:
            data = data[:at]
        newest.write_bytes(data)
        caplog.clear()
        state = load_last_checkpoint(tmp_path)
        assert state is not None
        torch.testing.assert_close(state, states[state["step"]], rtol=0, atol=0)
        assert (f"{newest}: cannot read checkpoint" in caplog.text) == (state["step"] == 1)
        fallbacks += state["step"] == 1
    assert fallbacks > 40


def test_a_full_disk_is_a_line_and_the_older_checkpoint_stays(tmp_path):
    older = save_checkpoint(tmp_path, 1, {"x": torch.ones(5000), "step": 1})
    with (
        full_disk(10_000),
        pytest.raises(UserError, match=r"step_0+2\.pt: cannot be written: .*File too large"),
    ):
        save_checkpoint(tmp_path, 2, {"x": torch.ones(5000), "step": 2})
    assert list(tmp_path.iterdir()) == [older]
    assert load_last_checkpoint(tmp_path)["step"] == 1
