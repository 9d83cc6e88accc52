"""What every process of canal does first, before it imports anything large."""

import gc

_OBJECTS = 200_000


def begin() -> None:
    """Have Python look for garbage less often: imports make a million objects and hardly any garbage.

    Looking for it every 700 objects takes a seventh of the time that torch and MLflow need to be imported.
    """
    gc.set_threshold(_OBJECTS)
