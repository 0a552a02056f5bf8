"""Griffe's extension for ``make docs``: examples in docstrings become code, and Sphinx's roles plain names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^([ \t]*)>>> .*(?:\n[ \t]*\S.*)*", re.MULTILINE)
_ROLE = re.compile(r":\w+:(`[^`]+`)")


class Doctests(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = _EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(r"\1", text)
