"""Only a whole archive of tensors is read; everything else is refused before anything is made of it."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from canal.core.errors import ModelError
from canal.model.published import read_state
from tests.support.models import TINY
from tests.support.published import published_state, save_checkpoint


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("sound") / "sound.pth", published_state(TINY, n_genes=9))


def repacked(source, target, change=lambda name, content: content, method=zipfile.ZIP_STORED, twice=()):
    """Write the members of an archive anew."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in [*old.namelist(), *twice]:
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


def test_only_the_weights_are_returned(sound):
    state = read_state(sound)
    assert state.keys() == published_state(TINY, n_genes=9).keys()
    assert torch.equal(state["norm.bias"], published_state(TINY, n_genes=9)["norm.bias"])


def test_state_of_an_optimiser_beside_the_weights_is_no_matter(tmp_path):
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}
    adam = {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}
    cycle = {"max_lr": 1e-4, "base_lrs": [1e-6], "verbose": False, "_last_lr": None}
    path = save_checkpoint(
        tmp_path / "x.pth", {"a": torch.ones(1)}, optimizer_state_dict=adam, scheduler_state_dict=cycle
    )
    assert list(read_state(path)) == ["a"]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["model_state_dict", "losses"])
def test_code_in_the_pickle_is_refused_and_does_not_run(tmp_path, place, protocol):
    trap = tmp_path / "trap"
    content = {"model_state_dict": {"a": torch.ones(1)}, place: Code(trap)}
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)
    wanted = (
        r"1 function\(s\) or class.*open.*none of it was run" if protocol == 2 else "more than name tensors"
    )
    with pytest.raises(ModelError, match=wanted):
        read_state(tmp_path / "x.pth")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Code(trap))).close()
    assert trap.exists(), "the trap of this test is no trap"


def test_a_number_of_numpy_is_named_with_what_to_do(tmp_path):
    path = save_checkpoint(tmp_path / "x.pth", {}, losses=np.float64(0.5))
    with pytest.raises(ModelError, match=r"numpy\.dtype.*save its 'model_state_dict' alone"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, r"no mapping of tensors named 'model_state_dict'; found \['state_dict'\]"),
        ({"model_state_dict": [1]}, r"found \['model_state_dict'\]"),
        ({"model_state_dict": {1: torch.ones(1)}}, "no mapping of tensors"),
        ([1], "found list"),
    ],
)
def test_without_weights_there_is_nothing_to_read(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=message):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(sound, tmp_path, share):
    content = sound.read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"no whole zip archive \(\d+ bytes"):
        read_state(tmp_path / "x.pth")


def test_a_plain_pickle_is_refused(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Code(trap)))
    with pytest.raises(ModelError, match="no whole zip archive"):
        read_state(tmp_path / "x.pth")
    torch.save({"model_state_dict": Code(trap)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="no whole zip archive"):
        read_state(tmp_path / "x.pth")
    assert not trap.exists()


def test_a_changed_byte_is_detected(sound, tmp_path):
    content = bytearray(sound.read_bytes())
    content[content.index(published_state(TINY, n_genes=9)["norm.bias"].numpy().tobytes())] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"member sound/data/\d+ does not have the sum"):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": zipfile.ZIP_DEFLATED}, r"1 data\.pkl, \d+ compressed"),
        ({"twice": ["sound/data.pkl"]}, r"found 2 data\.pkl, .* 1 repeated name"),
        ({"change": lambda name, content: None if name.endswith(".pkl") else content}, r"found 0 data\.pkl"),
        ({"change": lambda name, content: content[:20] if name.endswith(".pkl") else content}, "its pickle"),
        ({"change": lambda name, content: None if name.endswith("data/3") else content}, "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_torch_did_not_write_is_refused(sound, tmp_path, how, message):
    with pytest.raises(ModelError, match=message):
        read_state(repacked(sound, tmp_path / "x.pth", **how))
