"""The process that alone opens a published checkpoint: tensors in, safetensors and JSON out.

``python -m canal.model.published_reader CHECKPOINT FOLDER``; see `canal.model.published`, which starts it.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from canal.core.errors import ModelError
from canal.core.files import write_json
from canal.model.published_layout import translate
from canal.model.storage import WEIGHTS

ANSWER = "answer.json"
STATE = "model_state_dict"

_STRIP = f"where you trust its authors, save its {STATE!r} alone in a new checkpoint and import that"


def main() -> None:
    """Write ``weights.safetensors`` and ``answer.json`` to the folder, or only why it is refused."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        found = translate(read_state(source))
    except ModelError as error:
        write_json(target / ANSWER, {"refused": str(error)})
        return
    from safetensors.torch import save_file

    save_file(found.tensors, target / WEIGHTS)
    write_json(target / ANSWER, {"backbone": found.config.to_json(), "n_genes": found.n_genes})


def read_state(path: Path) -> Mapping[str, object]:
    """Return ``model_state_dict`` of a checkpoint; what else stands beside it is not looked at.

    The archive is checked before torch reads it, the pickle inside before anything is made from it, and then
    torch's own restricted reader (``weights_only``) makes nothing but containers, numbers and tensors, which
    stay in the file until they are used.

    Raises
    ------
    ModelError
        If the file is no whole archive as torch writes it, names code, or has no ``model_state_dict``.
    """
    _check_archive(path)
    _check_pickle(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a hostile file provokes is a reason to refuse it
        kind = type(error).__name__  # torch's own words advise to read the file without its protection
        raise ModelError(f"its pickle cannot be read as tensors ({kind}); {_STRIP}") from error
    state = loaded.get(STATE) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        found = [str(name) for name in loaded][:5] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ModelError(f"it has no mapping of tensors named {STATE!r}; found {found}")
    return state


def _check_archive(path: Path) -> None:
    """Refuse what torch would not have written, and every changed byte: torch itself checks no sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            pickles = [name for name in names if name.endswith("/data.pkl")]
            packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1]
            damaged = None if packed else archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"it is no whole zip archive ({path.stat().st_size} bytes; {error}): it was cut short, damaged, "
            "or written by a torch before 1.6; fetch it again, or save it again with a newer torch"
        ) from error
    if len(pickles) != 1 or len(set(names)) < len(names) or packed:
        raise ModelError(
            "it is a zip archive, but not of torch.save: expected one data.pkl and no member compressed or "
            f"of another's name, found {len(pickles)} data.pkl, {len(packed)} compressed or encrypted and "
            f"{len(names) - len(set(names))} repeated name(s)"
        )
    if damaged:
        raise ModelError(f"its member {damaged} does not have the sum that the archive says; fetch it again")


def _check_pickle(path: Path) -> None:
    """Refuse a pickle that names anything but tensors, without making anything of it."""
    try:
        named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # as above
        raise ModelError(f"its pickle does more than name tensors ({error}); {_STRIP}") from error
    if named:
        raise ModelError(
            f"its pickle names {len(named)} function(s) or class(es) that are no tensors, such as "
            f"{', '.join(named[:5])}: it may hold code, and none of it was run; {_STRIP}"
        )


if __name__ == "__main__":
    main()
