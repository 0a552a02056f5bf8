"""What a training is resumed from: the newest whole checkpoint of its own, or of the attempts before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from harness import atomic
from harness.errors import CheckpointError
from harness.training.checkpoint import load_checkpoint
from harness.training.history import History
from harness.training.run_folder import RunFolder, newest_first, set_aside
from harness.training.share import Share


def newest_checkpoint(
    folders: Sequence[RunFolder], identity: str, device: torch.device, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, History, frozenset[Path]]:
    """The newest checkpoint that is whole and of this training; damaged ones are set aside.

    Args:
        folders: of the attempts, oldest first.
        identity: of the training.
        device: where the state is wanted.
        say: told about checkpoints that cannot be used.

    Returns:
        Its state, or None; its history, or an empty one; checkpoints of other trainings, which are left alone.
    """
    foreign: set[Path] = set()
    for path in newest_first(folders):
        try:
            state = load_checkpoint(path, device)
            history = History.from_json(state.pop("extra"))
        except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
            with suppress(OSError):
                set_aside(path)
            say(f"{path.name} is not usable ({str(error).splitlines()[0]}); set aside, an older one is used")
            continue
        if history.identity == identity:
            return state, history, frozenset(foreign)
        foreign.add(path)
        say(f"{path.name} belongs to another configuration, other images or another version; not used")
    return None, History(identity), frozenset(foreign)


def inherit(folder: RunFolder, earlier: Sequence[RunFolder], share: Share | None, say: Callable[[str], None]) -> None:
    """Bring checkpoints from the share, where another machine made them, and copy the earlier attempts' grids.

    The attempt itself may be on the share, too: another machine trained it to the rung where it was paused.
    """
    for before in (*earlier, folder) if share else ():
        try:
            share.fetch(before.path)
        except Exception as error:
            say(f"{share} cannot be read ({type(error).__name__}); checkpoints of this machine are used")
    for before in earlier:
        atomic.remove_torn(before.path)  # its writer is dead
        for grid in before.grids():
            if not (folder.path / grid.name).exists():
                atomic.write_bytes(folder.path / grid.name, grid.read_bytes())
