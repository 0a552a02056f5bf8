"""Images to be prepared: where they come from, how many there are, and their pixels in order."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from harness.data.arrays import SETS, download, find_files, load, mnist_images
from harness.data.decode import (
    Preparation,
    Prepared,
    decode_chunk,
    deep_ranges,
    limit_memory,
    limited_memory,
    smaller_than,
    white_of,
)
from harness.data.downloads import CELEBA_HELP, celeba_folder
from harness.data.listing import File, in_order, list_images, real_path
from harness.data.own import OwnImages, own_images, read_array, user_code_failed
from harness.data.sources import Split, find_partition, name_parts, split
from harness.errors import DataError, UsageError
from harness.home import Home
from harness.machine.forks import SpawningContext, end_with_the_parent
from harness.machine.imports import load_function
from harness.machine.processes import usable_cores
from harness.spec.tables import DataSpec

Say = Callable[[str], None]
# Images that are decoded, and reported, at a time.
CHUNK = 200
# (name, pixels or None, note or reason) of one image.
Item = tuple[str, np.ndarray | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Images to be prepared.

    ``identity`` and ``prep`` change whenever the prepared pixels may change. ``split()`` names the images, those to
    train on first, and ``items()`` gives all of them in that order. ``unread`` are other files there, which
    cannot be used, with why. ``former`` are identities by which earlier versions knew these images.
    """

    label: str
    identity: dict[str, Any]
    prep: Preparation
    split: Callable[[], Split]
    items: Callable[[], Iterator[Item]]
    # As ``items()``, but in this process; None where that is the same.
    items_here: Callable[[], Iterator[Item]] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    # Whether they are not CelebA's, by their names, although the study expects CelebA.
    instead_of_celeba: bool = False
    former: Callable[[], Iterable[dict[str, Any]]] = tuple
    # How pixels of more than 8 bits are scaled, where not by the whole range of their format; known after ``items()``.
    scaled: Sequence[str] = ()

    def sample(self, n: int) -> list[Item]:
        """The first n, in this process."""
        return list(islice((self.items_here or self.items)(), n))

    @property
    def n_train(self) -> int:
        return len(self.split().train)

    @property
    def count(self) -> int:
        return len(self.split().names)


def find_material(
    home: Home, data: DataSpec, source: Path | None, *, study: str, say: Say, may_download: bool = True
) -> Material:
    """The images of a data section, not prepared yet; nothing is written unless they are downloaded."""
    if data.source == "mnist" or ":" in data.source:
        if source is not None:
            own = "the digits that come with it" if data.source == "mnist" else f"the images of {data.source}"
            raise UsageError(
                f"study {study} trains on {own}: {source} would not be used",
                'Leave out DATA, or name a study of your own images: source = "folder" in its [data].',
            )
        return _of_mnist(data) if data.source == "mnist" else _of_function(data)
    if data.source in SETS:
        if source is None:
            source = home.within("downloads", data.source)
            if may_download:
                download(data.source, source, held_out=data.held_out is not None, say=say)
            elif not source.is_dir():
                raise DataError(
                    f"{SETS[data.source].title} is not downloaded yet",
                    f"`harness data prepare {study}` downloads and prepares it, or pass its folder with DATA=.",
                )
        return _of_set(data, real_path(source), say)
    if source is None and data.source == "celeba" and celeba_folder(home).is_dir():
        source = celeba_folder(home)
    if source is None:
        if data.source == "celeba":
            size_mb = 202_599 * data.image_size**2 * data.channels / 1e6
            raise DataError(f"{study} needs CelebA", CELEBA_HELP.format(size_mb=size_mb))
        hint = "Pass DATA=/path/to/a/folder/or/zip of images, or to an .npy or .npz array."
        raise DataError(f"{study} needs images", hint)
    if source.suffix in (".npy", ".npz"):
        return _of_array_file(data, source)
    return _of_files(data, real_path(source), home, say)


def _of_mnist(data: DataSpec) -> Material:
    images, prep = _framed(mnist_images()), Preparation.of(data)
    _refuse_smaller("mnist", images, prep)
    divided = split([f"mnist-{index:05d}" for index in range(len(images))], data.held_out)
    own = own_images(images, prep, "mnist")
    return Material(
        label="mnist",
        identity={"source": "mnist", **divided.identity()},
        prep=prep,
        split=lambda: divided,
        items=lambda: _numbered(own, divided.names),
    )


def _of_set(data: DataSpec, root: Path, say: Say) -> Material:
    """MNIST, Fashion-MNIST, SVHN or CIFAR-10 from their files below ``root``."""
    prep = Preparation.of(data)
    files = find_files(data.source, root, held_out=data.held_out is not None)
    signature = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
    parts: list[tuple[OwnImages, list[str]]] = []
    names: dict[bool, list[str]] = {True: [], False: []}
    for path, file in files:
        images = load(SETS[data.source], path, file, say)
        if images.shape[1:] == (28, 28, 1):
            images = _framed(images[..., 0])
        _refuse_smaller(path.name, images, prep)
        own = [f"{path.name}-{index:05d}" for index in range(len(images))]
        parts.append((own_images(images, prep, path.name), own))
        names[file.held_out] += own
    rule = "the set's own test images are held out" if data.held_out is not None else "all images are trained on"
    divided = Split(rule, tuple(names[False]), tuple(names[True]))
    return Material(
        label=data.source,
        identity={"source": data.source, "files": signature, **divided.identity()},
        prep=prep,
        split=lambda: divided,
        items=lambda: chain.from_iterable(_numbered(images, own) for images, own in parts),
    )


def _of_files(data: DataSpec, root: Path, home: Home, say: Say) -> Material:
    """Photographs of a folder or a zip."""
    listing, is_zip, prep = list_images(root, home.root), root.is_file(), Preparation.of(data)
    for sentence in listing.sentences():
        say(sentence)
    partition = find_partition(root) if data.source == "celeba" and data.held_out is not None else None

    def divide(files: list[File], **rule: bool) -> tuple[Split, dict[str, Any]]:
        divided = split([name for name, _, _ in files], data.held_out, partition, **rule)
        return divided, {"source": str(root), "files": files, **divided.identity()}

    def former() -> Iterator[dict[str, Any]]:
        with suppress(DataError):
            yield divide(in_order(listing.as_spelled(listing.files)))[1]
        with suppress(DataError):
            yield divide(listing.former, by_name=True)[1]

    scaled: list[str] = []
    divided, identity = divide(listing.files)
    return Material(
        label=data.source,
        identity=identity,
        prep=prep,
        split=lambda: divided,
        items=lambda: _decoded(root, is_zip, divided.names, prep, scaled),
        items_here=lambda: ((name, *_decoded_here(root, is_zip, name, prep)) for name in divided.names),
        unread=listing.unread,
        instead_of_celeba=data.source == "celeba" and not _named_as_celeba(listing.files),
        former=former,
        scaled=scaled,
    )


def _named_as_celeba(files: Sequence[File]) -> bool:
    """Whether most files have names such as 000001.jpg, which CelebA's have in every edition."""
    return (
        sum(bool(re.fullmatch(r"\d{6}", PurePath(name_parts(name)[-1]).stem)) for name, _, _ in files) > len(files) / 2
    )


def _of_array_file(data: DataSpec, path: Path) -> Material:
    array, stat = read_array(path), path.stat()
    identity = {"source": str(path.resolve()), "file": [stat.st_size, stat.st_mtime_ns]}
    return _of_own(data.source, identity, data, lambda: own_images(array, Preparation.of(data), path.name))


def _of_function(data: DataSpec) -> Material:
    """Images of a function, which is called only where no store has been made with the same code."""
    function = load_function(data.source)

    def call() -> OwnImages:
        try:
            images = function.call()
        except Exception as error:  # the user's code
            raise user_code_failed(data.source, error) from error
        return own_images(images, Preparation.of(data), data.source)

    identity = {"source": data.source, "code": function.sha256}
    return _of_own(data.source.replace(":", "."), identity, data, call)


def of_object(data: DataSpec, images: Any) -> Material:
    """Images of an array or a data set in memory, known by their pixels; DataError if they are not images."""
    own = own_images(images, Preparation.of(data), "images")
    total = hashlib.sha256()
    for index in range(own.count):
        pixels, note = own.pixels(index)
        total.update(note.encode() if pixels is None else pixels.tobytes())
    return _of_own("array", {"source": "array", "pixels": total.hexdigest()}, data, lambda: own)


def _of_own(label: str, identity: dict[str, Any], data: DataSpec, load: Callable[[], OwnImages]) -> Material:
    loaded = functools.cache(load)

    @functools.cache
    def divided() -> Split:
        return split([f"image-{index:06d}" for index in range(loaded().count)], data.held_out)

    scaled: list[str] = []

    def items() -> Iterator[Item]:
        yield from _numbered(loaded(), divided().names)
        sentence = loaded().require_range(label)
        scaled[:] = [sentence] if sentence else []

    return Material(
        label=label,
        identity={**identity, "share": data.held_out},
        prep=Preparation.of(data),
        split=divided,
        items=items,
        scaled=scaled,
    )


def _refuse_smaller(name: str, images_NHWC: np.ndarray, prep: Preparation) -> None:
    height, width = images_NHWC.shape[1:3]
    if too_small := smaller_than(width, height, prep):
        raise DataError(f"{name}: {too_small}", "Use a smaller image_size or crop.")


def _framed(images_NHW: np.ndarray) -> np.ndarray:
    """28 px digits and clothes are centred on black in 32 px, not enlarged; shape (n, 32, 32, 1)."""
    padded: np.ndarray = np.pad(images_NHW, ((0, 0), (2, 2), (2, 2)))
    return padded[..., None]


def _numbered(own: OwnImages, names: Sequence[str]) -> Iterator[Item]:
    """Images by the numbers at the end of their names."""
    return ((name, *own.pixels(int(name.rpartition("-")[2]))) for name in names)


def _decoded_here(root: Path, is_zip: bool, member: str, prep: Preparation) -> Prepared:
    with limited_memory():
        return decode_chunk(root, is_zip, (member,), prep)[0]


def _begin_decoding() -> None:
    """In a decoding process: bound its memory, and end when the parent is killed."""
    limit_memory()
    end_with_the_parent()


def _decoded(
    root: Path, is_zip: bool, members: tuple[str, ...], prep: Preparation, scaled: list[str]
) -> Iterator[Item]:
    """By as many processes as there are cores; first the range of all images, then each."""
    # spawn: the parent may hold threads (torch, the live table) that must not be forked.
    pool = ProcessPoolExecutor(min(usable_cores(), -(-len(members) // CHUNK)), SpawningContext(), _begin_decoding)
    try:
        ranges = [each for _, found in _in_chunks(pool, members, deep_ranges, root, is_zip) for each in found]
        white, sentence = white_of(ranges)
        scaled[:] = [sentence] if sentence else []
        for names, results in _in_chunks(pool, members, decode_chunk, root, is_zip, prep, white):
            yield from ((name, *result) for name, result in zip(names, results, strict=True))
    except BrokenProcessPool:
        raise DataError(
            "a process that decodes images was killed", "Out of memory? Free some and start again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_chunks(
    pool: ProcessPoolExecutor, members: tuple[str, ...], function: Callable[..., list[Any]], root: Path, is_zip: bool,
    *arguments: Any,
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:  # fmt: skip
    """What a function gives for some members at a time, with their names, in order."""
    chunks = (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))
    submitted = ((names, pool.submit(function, root, is_zip, names, *arguments)) for names in chunks)
    # Only a few chunks ahead of the caller, so that results never pile up in memory.
    waiting = deque(islice(submitted, 2 * usable_cores()))
    while waiting:
        names, job = waiting.popleft()
        results = job.result()
        waiting.extend(islice(submitted, 1))
        yield names, results
