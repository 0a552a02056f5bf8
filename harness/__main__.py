"""``python -m harness``: the command line."""

import os  # not pathlib, which would be the current folder's
import sys

import harness


def _forget_current_folder() -> None:
    """Look for modules as the command ``harness`` does, where this is the installed package.

    ``python -m`` puts the current folder before all others, and what lies there is not meant for import.
    """
    if not sys.flags.safe_path:
        first = sys.path.pop(0)
        found = (finder.find_spec("harness", None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next(filter(None, found), None)
        if spec is None or spec.origin is None or not os.path.samefile(spec.origin, str(harness.__file__)):  # noqa: PTH121
            sys.path.insert(0, first)


if __name__ == "__main__":
    _forget_current_folder()
    from harness.cli import main

    sys.exit(main())
