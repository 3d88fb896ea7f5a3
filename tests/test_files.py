"""Files that are whole or absent: their names, links and modes."""
import stat

import pytest
import torch
from safetensors.torch import save_file

from bssnet_zoo.files import atomic_path, check_writable, parse_yaml


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o640, 0o444])
def test_a_file_keeps_its_mode_and_a_new_one_gets_the_usual(before, tmp_path):
    """safetensors writes files that only their owner can read."""
    (tmp_path / "plain").touch()
    path = tmp_path / "weights.safetensors"
    if before:
        path.touch(before)
    with atomic_path(path) as temporary:
        save_file({"a": torch.ones(1)}, temporary)
    assert mode(path) == (before or mode(tmp_path / "plain"))


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays(there, tmp_path):
    target = tmp_path / "elsewhere" / "a.txt"
    if there:
        target.parent.mkdir()
        target.touch()
    (tmp_path / "link").symlink_to("elsewhere/a.txt")
    check_writable(tmp_path / "link")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "漢" * 83 + ".png", "a." + "b" * 253, "b\udcff" + "c" * 248])
def test_names_as_long_as_they_may_be(name, tmp_path):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["[1", "a: &x [1]\nb: *x", "[" * 1000 + "]" * 1000, "a" * (1 << 20) + "a"])
def test_yaml_of_strangers(text):
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
