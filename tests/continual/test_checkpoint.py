import pytest
import torch

from canal.continual.fit import Checkpoint, read_checkpoint, with_prefix, without_prefix, write_checkpoint

TENSORS = {"now/a": torch.tensor([1.0, 2.0]), "adam/a/step": torch.tensor(3.0)}
EPOCHS = [{"epoch": 1, "loss": 0.1 + 0.2, "probe_accuracy": {"first": 0.5}}]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, "this one", Checkpoint(TENSORS, EPOCHS))
    return path


def test_written_and_read(path):
    found = read_checkpoint(path, "this one")
    assert found.epochs == EPOCHS
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_same_bytes_each_time(path, tmp_path):
    write_checkpoint(tmp_path / "again", "this one", Checkpoint(TENSORS, EPOCHS))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_no_checkpoint(tmp_path):
    assert read_checkpoint(tmp_path / "none", "this one") is None


def test_another_trainings_checkpoint_does_not_count(path):
    assert read_checkpoint(path, "another one") is None


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_checkpoint_cut_short_does_not_count(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    assert read_checkpoint(path, "this one") is None


def test_a_flipped_bit_in_the_weights_does_not_count(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read_checkpoint(path, "this one") is None


def test_prefixes_come_and_go():
    values = {"a.b": torch.zeros(1)}
    assert (
        without_prefix("now", with_prefix("now", values) | with_prefix("best", {"c": torch.ones(1)}))
        == values
    )
