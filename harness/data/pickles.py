"""Reading pickled batches of images without trusting them: nothing but arrays of bytes is made."""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np


class PickledArray:
    """Stands for a NumPy array while it is unpickled: NumPy's own type can be told to take any bytes for objects."""

    state: tuple[int, tuple[int, ...], _Kind, bool, bytes | str]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Kind, bool, bytes | str]) -> None:
        self.state = state

    def uint8(self) -> np.ndarray:
        """The values, where they are bytes."""
        _, shape, kind, by_columns, raw = self.state
        if kind.code != "u1":
            raise ValueError(f"its data are of type {kind.code!r}, not uint8")
        values = np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, np.uint8)
        return values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


class _Kind:
    """Stands for a NumPy dtype."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it is encoded as {encoding}")
    return text.encode("latin1")


def _no_array(*_: object) -> None:
    raise pickle.UnpicklingError("it makes arrays in a way that no batch of images needs")


# All that a pickled batch of CIFAR-10 asks for, and what it gets.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encoded,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")
        return _STAND_INS[module, name]


def unpickle_arrays(file: IO[bytes]) -> Any:
    """A pickle of plain values and arrays of bytes, which become :class:`PickledArray`.

    Raises:
        pickle.UnpicklingError: it asks for anything else.
    """
    return _ArraysOnly(file, encoding="latin1").load()
