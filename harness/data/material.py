"""Images to be prepared: where they come from, how many there are, and their pixels in order."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain, islice
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from harness.data import arrays
from harness.data.decode import Preparation, decode_chunk, fit, smaller_than
from harness.data.own import OwnImages, own_images, read_array, user_code_failed
from harness.data.sources import Listing, list_images, mnist_images
from harness.data.split import Split, find_partition, split
from harness.errors import DataError
from harness.gan.hparams import digest
from harness.machine.forks import SpawningContext
from harness.machine.imports import load_function
from harness.spec.tables import DataSpec

_CHUNK = 200
# (name, pixels or None, note or reason) of one image.
Item = tuple[str, np.ndarray | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Images to be prepared.

    ``identity`` changes whenever the prepared pixels may change. ``split()`` names the images, those to train on first,
    and ``items()`` gives all of them in that order; ``sample(n)`` gives the first n at once, in this process.
    """

    label: str
    identity: dict[str, Any]
    prep: Preparation
    split: Callable[[], Split]
    items: Callable[[], Iterator[list[Item]]]
    sample: Callable[[int], list[Item]]

    @property
    def n_train(self) -> int:
        return len(self.split().train)

    @property
    def count(self) -> int:
        return self.n_train + len(self.split().held_out)


def preparation(data: DataSpec) -> Preparation:
    """The preparation that a study's data section asks for."""
    return Preparation(
        image_size=data.image_size,
        channels=data.channels,
        crop=data.crop,
        resample=data.resample or "bicubic",
        sharpen=data.sharpen or 1.0,
    )


def of_mnist(data: DataSpec) -> Material:
    """The digits that come inside a package.

    Raises:
        DataError: they are smaller than the target.
    """
    prep = preparation(data)
    images = mnist_images()
    height, width = _framed(images[:1]).shape[1:3]
    if too_small := smaller_than(width, height, prep):
        raise DataError(f"mnist: {too_small}", "Use a smaller image_size or crop.")
    names = [f"mnist-{index:05d}" for index in range(len(images))]
    divided = split(names, data.held_out)
    index_of = {name: index for index, name in enumerate(names)}
    ordered = [index_of[name] for name in (*divided.train, *divided.held_out)]
    return _material("mnist", {"source": "mnist"}, data, divided, lambda: _resized(_framed(images)[ordered], prep))


def of_array_set(data: DataSpec, root: Path, say: arrays.Say) -> Material:
    """MNIST, Fashion-MNIST, SVHN or CIFAR-10 from their files below ``root``.

    Raises:
        DataError: a file is missing, damaged, or its images are smaller than the target.
    """
    files = arrays.find_files(data.source, root, held_out=data.held_out is not None)
    signature = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
    parts = [(path, file, arrays.load(data.source, path, file, say)) for path, file in files]
    parts = [(path, file, _framed(images[..., 0]) if images.shape[1:] == (28, 28, 1) else images)
             for path, file, images in parts]  # fmt: skip
    prep = preparation(data)
    for path, _, images in parts:
        height, width = images.shape[1:3]
        if too_small := smaller_than(width, height, prep):
            raise DataError(f"{path.name}: {too_small}", "Use a smaller image_size or crop.")
    names = {True: [], False: []}  # type: dict[bool, list[str]]
    for path, file, images in parts:
        names[file.held_out] += [f"{path.name}-{index:05d}" for index in range(len(images))]
    rule = "the set's own test images are held out" if data.held_out is not None else "all images are trained on"
    divided = Split(rule, tuple(names[False]), tuple(names[True]))

    def items() -> Iterator[list[Item]]:
        for _, _, images in parts:
            yield from _resized(images, prep)

    return _material(data.source, {"source": data.source, "files": signature}, data, divided, items)


def of_files(data: DataSpec, root: Path, workers: int | None = None) -> Material:
    """Photographs of a folder or a zip, decoded by ``workers`` processes (all cores unless given).

    Raises:
        DataError: nothing usable is there.
    """
    root = root.resolve()
    listing = list_images(root)
    partition = find_partition(root) if data.source == "celeba" and data.held_out is not None else None
    divided = split(listing.members, data.held_out, partition)
    prep = preparation(data)
    identity = {"source": str(listing.root), "files": listing.signature}
    members = (*divided.train, *divided.held_out)

    def sample(n: int) -> list[Item]:
        results = decode_chunk(listing.root, listing.is_zip, members[:n], prep)
        return [(member, pixels, note) for member, (pixels, note) in zip(members, results, strict=False)]

    return _material(data.source, identity, data, divided, lambda: _decoded(listing, members, prep, workers), sample)


def of_array_file(data: DataSpec, path: Path) -> Material:
    """Images of a person's ``.npy`` or ``.npz`` file.

    Raises:
        DataError: the file does not hold images.
    """
    array = read_array(path)
    stat = path.stat()
    identity = {"source": str(path.resolve()), "file": [stat.st_size, stat.st_mtime_ns]}
    return _own(data.source, identity, data, lambda: own_images(array, preparation(data), path.name))


def of_function(data: DataSpec) -> Material:
    """Images of a function, which is called only where no store has been made with the same code.

    Raises:
        UsageError: the function cannot be imported.
    """
    function = load_function(data.source)

    def load() -> OwnImages:
        try:
            images = function.call()
        except Exception as error:  # the user's code
            raise user_code_failed(data.source, error) from error
        return own_images(images, preparation(data), data.source)

    identity = {"source": data.source, "code": function.sha256}
    return _own(data.source.replace(":", "."), identity, data, load)


def of_object(data: DataSpec, images: Any) -> Material:
    """Images of an array or a data set in memory, known by their pixels.

    Raises:
        DataError: they are not images.
    """
    own = own_images(images, preparation(data), "images")
    total = hashlib.sha256()
    for index in range(own.count):
        pixels, note = own.pixels(index)
        total.update(note.encode() if pixels is None else pixels.tobytes())
    return _own("array", {"source": "array", "pixels": total.hexdigest()}, data, lambda: own)


def _own(label: str, identity: dict[str, Any], data: DataSpec, load: Callable[[], OwnImages]) -> Material:
    loaded = functools.cache(load)

    @functools.cache
    def divided() -> Split:
        return split([f"image-{index:06d}" for index in range(loaded().count)], data.held_out)

    def items() -> Iterator[list[Item]]:
        names = (*divided().train, *divided().held_out)
        for start in range(0, len(names), _CHUNK):
            yield [(name, *loaded().pixels(int(name.removeprefix("image-")))) for name in names[start : start + _CHUNK]]

    prep = preparation(data)
    whole = {**identity, "prep": asdict(prep), "share": data.held_out}
    return Material(label=label, identity=whole, prep=prep, split=divided, items=items, sample=_first(items))


def _material(
    label: str,
    identity: dict[str, Any],
    data: DataSpec,
    divided: Split,
    items: Callable[[], Iterator[list[Item]]],
    sample: Callable[[int], list[Item]] | None = None,
) -> Material:
    prep = preparation(data)
    # Held-out names, for a partition file may change while the images do not.
    whole = {**identity, "prep": asdict(prep), "rule": divided.rule, "held_out": digest(list(divided.held_out))}
    return Material(
        label=label, identity=whole, prep=prep, split=lambda: divided, items=items, sample=sample or _first(items)
    )


def _first(items: Callable[[], Iterator[list[Item]]]) -> Callable[[int], list[Item]]:
    return lambda n: list(islice(chain.from_iterable(items()), n))


def _framed(images_NHW: np.ndarray) -> np.ndarray:
    """28 px digits and clothes are centred on black in 32 px, not enlarged; shape (n, 32, 32, 1)."""
    padded: np.ndarray = np.pad(images_NHW, ((0, 0), (2, 2), (2, 2)))
    return padded[..., None]


def _resized(images_NHWC: np.ndarray, prep: Preparation) -> Iterator[list[Item]]:
    from PIL import Image

    channels = images_NHWC.shape[3]
    side = prep.image_size
    as_they_are = images_NHWC.shape[1:] == (side, side, prep.channels) and prep.sharpen == 1.0
    as_they_are &= prep.crop in ("square", "after_resize", "none", side)
    mode = "L" if prep.channels == 1 else "RGB"
    for start in range(0, len(images_NHWC), _CHUNK):
        chunk = images_NHWC[start : start + _CHUNK]
        if as_they_are:
            pixels = list(chunk)
        else:
            flat = chunk[..., 0] if channels == 1 else chunk
            pixels = [fit(Image.fromarray(np.ascontiguousarray(image)).convert(mode), prep) for image in flat]
        yield [("", image, "") for image in pixels]


def _end_with_parent() -> None:
    """In a decoding process: end when the parent is killed; nothing else would end this process."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _decoded(
    listing: Listing, members: tuple[str, ...], prep: Preparation, workers: int | None
) -> Iterator[list[Item]]:
    chunks = [members[start : start + _CHUNK] for start in range(0, len(members), _CHUNK)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # spawn: the parent may hold threads (torch, the live table) that must not be forked.
    pool = ProcessPoolExecutor(min(workers or cores, len(chunks)), SpawningContext(), _end_with_parent)
    try:
        # Only a few chunks ahead of the caller, so that results never pile up in memory.
        ahead = 2 * (workers or cores)
        jobs = [pool.submit(decode_chunk, listing.root, listing.is_zip, chunk, prep) for chunk in chunks[:ahead]]
        for index, chunk in enumerate(chunks):
            results = jobs[index].result()
            jobs[index] = None  # type: ignore[call-overload]
            if index + ahead < len(chunks):
                jobs.append(pool.submit(decode_chunk, listing.root, listing.is_zip, chunks[index + ahead], prep))
            yield [(member, pixels, note) for member, (pixels, note) in zip(chunk, results, strict=True)]
    except BrokenProcessPool:
        raise DataError(
            "a process that decodes images was killed", "Out of memory? Free some and start again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
