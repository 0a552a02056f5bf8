"""``python -m tools.api_docs``: write docs/api.md, the public names with their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel

import harness
from harness.api.study import BestTrial

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
_INTRO = """\
# Python API

What `import harness` offers; [From Python](python.md) shows it in use. Written by `python -m tools.api_docs` from the
docstrings, whose examples are run by a test. `tiny` is a study of four short trials on a folder of images.
"""
# As one meets them: a study, its parts, then what works without one.
SHOWN: tuple[Any, ...] = (
    harness.Study,
    BestTrial,
    harness.StudySpec,
    harness.HParams,
    harness.train,
    harness.score,
    harness.Generator,
    harness.load_generator,
    harness.register_network,
)
_LISTS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}
_TEXTS = {"Returns": "Returns", "Yields": "Yields", "Example": "Example"}


def api_markdown() -> str:
    """The page docs/api.md."""
    lines = [_INTRO]
    for thing in SHOWN:
        lines += [f"## {thing.__name__}", ""]
        if inspect.isclass(thing):
            lines += [*_class(thing)]
        else:
            lines += [*_signature(f"harness.{thing.__name__}", thing), *_docstring(thing)]
    return "\n".join(lines).rstrip() + "\n"


def _class(thing: type) -> Iterator[str]:
    rows = [*_fields(thing)]
    if not rows and thing is not BestTrial:  # which is made by a study only
        yield from _signature(f"harness.{thing.__name__}", thing)
    yield from _docstring(thing)
    if rows:
        yield from ("| field | default | meaning |", "|---|---|---|", *rows, "")
    for name, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else getattr(thing, name)
        if (name.startswith("_") and name != "__call__") or not inspect.isroutine(function) or not function.__doc__:
            continue
        yield from (f"### {thing.__name__}.{name}", "")
        if not isinstance(member, property):
            yield from _signature(name, function)
        yield from _docstring(function)


def _fields(thing: type) -> Iterator[str]:
    """Rows of a table of what a configuration holds."""
    if issubclass(thing, BaseModel):
        for name, field in thing.model_fields.items():
            table = inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
            about = inspect.getdoc(field.annotation).partition("\n")[0] if table else ""
            shown = "required" if field.is_required() else "its own" if table else _value(field.default)
            yield f"| `{name}` | {shown} | {field.description or about} |"
    elif thing is harness.HParams:
        hints = get_type_hints(thing, include_extras=True)
        for field in dataclasses.fields(thing):
            texts = [each for each in hints[field.name].__metadata__ if isinstance(each, str)]
            yield f"| `{field.name}` | {_value(field.default)} | {texts[-1]} |"


def _value(value: Any) -> str:
    return f"`{json.dumps(value) if isinstance(value, str) else getattr(value, '__name__', repr(value))}`"


def _signature(name: str, function: Any) -> Iterator[str]:
    """The call, on one line where it fits, else an argument a line."""
    parameters = [*inspect.signature(function).parameters.values()]
    arguments, kinds = [], [parameter.kind for parameter in parameters]
    for place, parameter in enumerate(parameters):
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.KEYWORD_ONLY not in kinds[:place]:
            arguments.append("*")
        given = "" if parameter.default is parameter.empty else f" = {_value(parameter.default).strip('`')}"
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        arguments.append(f"{star}{parameter.name}: {parameter.annotation}{given}")
    returned = "" if inspect.isclass(function) else f" -> {inspect.signature(function).return_annotation}"
    line = f"{name}({', '.join(arguments)}){returned}"
    if len(line) > 100:
        line = "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){returned}"])
    yield from ("```python", line.replace("'", '"'), "```", "")


def _docstring(thing: Any) -> Iterator[str]:
    """A docstring as Markdown: its sections as lists, its examples as code."""
    text = inspect.cleandoc(thing.__doc__).replace("``", "`")
    text = re.sub(r":\w+:`", "`", text)
    for block in text.split("\n\n"):
        head, _, rest = block.partition("\n")
        section = head.removesuffix(":")
        body = textwrap.dedent(rest) if section in _LISTS | _TEXTS else block
        if section in _LISTS | _TEXTS:
            yield from (f"**{(_LISTS | _TEXTS)[section]}**", "")
        if section in _LISTS:
            for item in re.split(r"\n(?=\S)", body):
                name, _, meaning = item.partition(":")
                yield f"- `{name}`: {' '.join(meaning.split())}"
        elif body.startswith(">>>"):
            yield from ("```pycon", body, "```")
        else:
            yield body
        yield ""


if __name__ == "__main__":
    PAGE.write_text(api_markdown())
