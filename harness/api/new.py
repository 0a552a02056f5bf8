"""Write a study file that fits a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from harness import atomic
from harness.data.look import is_grey, look
from harness.data.material import Say
from harness.data.sources import printable
from harness.data.store import OnProgress, open_store
from harness.errors import UsageError
from harness.home import Home
from harness.spec.files import file_names, load_study_file, parse_study, read, shipped_dir, spaces_dir
from harness.spec.fit import few_images, require_images
from harness.spec.tables import NAME_PATTERN

# From this many images on, larger batches are searched.
_MANY = 5_000


def new_study(
    name: str, home: Home, source: Path, *, image_size: int, on_progress: OnProgress, say: Say
) -> tuple[Path, Sequence[str]]:
    """Prepare a folder's images and write a study that fits them; return (its file, sentences about the images).

    The file is ``photos32`` or ``photos64``, adapted to the images. It is written to the folder of study files, or to
    the current folder if there is only the package's own. Raises DataError if no study would fit.
    """
    own = Path("search_spaces").is_dir() or "HARNESS_SEARCH_SPACES" in os.environ
    path = (spaces_dir() if own else Path()) / f"{name}.toml"
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"invalid name {name!r}", "Use lower-case letters, digits, - and _.")
    if path.exists() or name in file_names("study"):
        raise UsageError(f"there is a study {name} already", "Choose another name, or remove its file.")
    template = shipped_dir() / f"photos{image_size}.toml"
    spec = load_study_file(str(template))
    store = open_store(home, spec.data, source, study=name, on_progress=on_progress, say=say)
    require_images(spec, store.n_train, store.n_held_out)
    store.require_contrast()
    sentences = [*look(store, home, source), *filter(None, [few_images(spec, store.n_train)])]
    folder = printable(source.resolve().name)
    described = {"description": f"{len(store):,} images of your own ({folder}) at {image_size} px."}
    changes = {r"description = .*": tomli_w.dumps(described).strip()}
    if is_grey(store):
        changes[r"channels = 3"] = "channels = 1"
    if len(store) >= _MANY:
        changes[r"choices = \[8, 16, 32\]"] = "choices = [16, 32, 64, 128]"
    lines = read(template).splitlines()
    for line, other in changes.items():
        lines = [other if re.fullmatch(line, each) else each for each in lines]
    seen = "".join(f"# - {sentence}\n" for sentence in sentences)
    text = f"# Written by `harness new` for the images in {folder}, from {template.stem}:\n{seen}\n"
    text += "\n".join((*lines, ""))
    parse_study(name, text, shown_as=str(path))
    atomic.write_text(path, text)
    return path, sentences
