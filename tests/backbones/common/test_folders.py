"""Folders that two programs want, that are full, that may not be written to."""

import os
import signal
from pathlib import Path

import pytest
from helpers.full_disk import full_disk

from backbones.common import files
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, locked, open_to_append


def hold(folder: Path) -> int:
    """Lock a folder in another process, until it is killed."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with locked(folder):
                os.write(tell, b"!")
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    return pid


def test_a_folder_has_one_owner_until_it_dies(tmp_path):
    owner = hold(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=f"{tmp_path}: another program is writing into this"),
            locked(tmp_path),
        ):
            pass
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
        child = os.fork()
        if child == 0:  # as a loader's worker, which may live on: it has no part in the lock
            signal.pause()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", no_locks)
    with locked(tmp_path):
        pass
    assert "cannot be locked, let no other program write there" in caplog.text


def test_a_planted_link_is_not_followed(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in (".lock", "a.txt"):
        (tmp_path / name).symlink_to(mine)
    with pytest.raises(UserError, match=r"\.lock: cannot be written: Too many"), locked(tmp_path):
        pass
    with pytest.raises(UserError, match=r"a\.txt: cannot be written: Too many levels"):
        open_to_append(tmp_path / "a.txt")
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("new")
    assert mine.read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


def test_a_full_disk_is_a_line_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with (
        full_disk(),
        pytest.raises(UserError, match=r"a\.bin: cannot be written: File too large"),
        atomic_write(path) as file,
    ):
        file.write(bytes(1000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_to_is_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"b: cannot be written: File exists"),
        atomic_write(tmp_path / "file" / "b"),
    ):
        pass
    folder = tmp_path / "gone"
    vanishing = atomic_write(folder / "c")
    vanishing.__enter__()
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
    with pytest.raises(UserError, match="c: cannot be written: No such file"):
        vanishing.__exit__(None, None, None)
