"""Short names for networks of people's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.errors import UsageError
from harness.text import did_you_mean

# The networks of this package, which hyperparameters describe.
DCGAN = "dcgan"
_registered: dict[str, str] = {}


def register_network(name: str, function: Callable[..., Any]) -> None:
    """Let studies of this process say ``network = name`` for a function of a module.

    Args:
        name: any but ``dcgan``.
        function: takes :class:`HParams` and the shape of an image (channels, height, width); returns generator and
            discriminator. Worker processes import it, so it must stand in a module, not in a script or notebook.

    Raises:
        UsageError: the function is not one of a module, or the name is taken.

    >>> import harness
    >>> from examples.residual import networks
    >>> harness.register_network("residual", networks)
    """
    module, qualified = function.__module__, function.__qualname__
    if module == "__main__" or not qualified.isidentifier():
        raise UsageError(
            f"{module}.{qualified} cannot be imported by worker processes",
            "Move the function into a module of its own, at its top level.",
        )
    path = f"{module}:{qualified}"
    if name == DCGAN or _registered.get(name, path) != path:
        raise UsageError(f"the name {name!r} is taken", "Choose another one.")
    _registered[name] = path


def network_path(name: str) -> str:
    """``module:function`` of a registered name; a name with a colon is one already.

    Raises:
        ValueError: nothing of that name is registered.
    """
    if ":" in name or name == DCGAN:
        return name
    if name not in _registered:
        raise ValueError(f"found {name!r}; must be module:function{did_you_mean(name, _registered)}")
    return _registered[name]
