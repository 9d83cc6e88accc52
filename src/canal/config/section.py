"""What every section of params.yaml is made of: frozen, strict, and names that are safe everywhere."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


def check_name(name: str) -> str:
    """Return ``name``; a `ValueError` unless it is safe as a file name, a DVC stage key and an MLflow tag."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is not a name: use 1-64 of a-z, 0-9, '-' and '_', "
            "beginning and ending with a letter or digit"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """A part of params.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DanglingNameError(ValueError):
    """A name that points nowhere, or does not go with another key; with the path of its key."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
