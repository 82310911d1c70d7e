"""Folders that cannot be written into."""

import pytest

from backbones.common.errors import UserError
from backbones.common.files import make_folder


def test_a_folder_to_write_into(tmp_path):
    folder = make_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write into this folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="inside: cannot write into this folder"):
        make_folder(tmp_path / "file" / "inside")
