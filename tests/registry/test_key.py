"""key.json says what a folder holds, and notices when it does not."""

import pytest

from canal.core.errors import RegistryError
from canal.core.files import read_json, write_json
from canal.registry.manifest.version_folder import check_files, key_digest, read_key, write_key


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"abc")
    (tmp_path / "history.json").write_text("{}")
    return tmp_path


def test_the_same_content_gives_the_same_key(folder):
    write_key(folder, {"stage": "a"}, parent=None)
    first = key_digest(folder)
    write_key(folder, {"stage": "a"}, parent=None)
    assert key_digest(folder) == first
    write_key(folder, {"stage": "a"}, parent="0" * 64)
    assert key_digest(folder) != first


def test_the_first_stage_has_a_null_teacher_and_the_backbone_none(folder):
    assert write_key(folder, {}, parent="0" * 64)["teacher"] is None
    assert "teacher" not in write_key(folder, {}, parent=None)


@pytest.mark.parametrize("damage", ["flip", "delete", "truncate"])
def test_every_damaged_file_is_named(folder, damage):
    key = write_key(folder, {}, parent=None)
    check_files(folder, key["files"])
    path = folder / "model" / "weights.safetensors"
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(b"abd" if damage == "flip" else b"ab")
    with pytest.raises(RegistryError, match=r"1 of 2 files.*\n.*weights\.safetensors"):
        check_files(folder, key["files"])


def test_a_missing_or_unknown_key_is_refused(folder):
    with pytest.raises(RegistryError, match="no finished model"):
        read_key(folder)
    write_key(folder, {}, parent=None)
    write_json(folder / "key.json", read_json(folder / "key.json") | {"format": 3})
    with pytest.raises(RegistryError, match="key formats 1 and 2, found 3"):
        read_key(folder)
