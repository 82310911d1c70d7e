"""Folders that cannot be written into."""

import pytest

from backbones.common.errors import UserError
from backbones.common.files import make_folder


def test_a_folder_to_write_into(tmp_path):
    folder = make_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write into this folder: it is a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="inside: cannot write into this folder"):
        make_folder(tmp_path / "file" / "inside")
    message = r"g/a\.JPG: cannot write into this folder: named like a file: name .*, such as .*g/a$"
    with pytest.raises(UserError, match=message):
        make_folder(tmp_path / "g" / "a.JPG")
    assert not (tmp_path / "g").exists()
    (tmp_path / "b.jpg").mkdir()
    make_folder(tmp_path / "b.jpg")
    make_folder(tmp_path / "v1.2")
