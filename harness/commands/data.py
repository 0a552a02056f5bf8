"""Working with the images of a study or recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import DataError, NotFoundError, UsageError
from harness.home import Home
from harness.spec.files import load_recipe, load_study_file, recipe_hparams
from harness.spec.images import DataSpec
from harness.store.attrs import StudyAttrs

if TYPE_CHECKING:
    from harness.data.store import ImageStore

Say = Callable[[str], None]


def export_reference(study_name: str, home: Home, source: Path | None, out: Path, say: Say) -> str:
    """Write the real images that a study's final scores compare with as PNG files."""
    from harness.commands.studies import started_spec
    from harness.data.store import open_store
    from harness.scoring.reference import reference_images
    from harness.scoring.scorer import split_images
    from harness.store.studies import started_study
    from harness.training.attempt import save_png

    spec = started_spec(study_name, home)
    store = open_store(home, spec.data, source, study=study_name, on_progress=lambda *_: None, say=say)
    found = StudyAttrs.parse(started_study(study_name, home).user_attrs).dataset["fingerprint"]
    if store.fingerprint != found:
        raise DataError("these are not the images that the study was run on", "Give the same DATA.")
    refuse_to_mix(out)
    images = reference_images(split_images(store, spec.scoring.final), spec.scoring.final.reference)
    for index, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        save_png(out / f"{index:06d}.png", pixels)
    return f"{len(images)} real images in {out}"


def refuse_to_mix(out: Path) -> None:
    """Images that are written into a folder are all that is in it.

    Raises:
        UsageError: something is.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "What is in it would be mixed with the images: name another folder.")


def wanted_data(study: str, recipe: str | None, variant: str | None) -> tuple[str, DataSpec]:
    """(name, images) of a study file, or of a recipe's variant."""
    if recipe is None:
        spec = load_study_file(study)
        return spec.name, spec.data
    loaded = load_recipe(recipe)
    variant = variant or loaded.default_variant
    recipe_hparams(loaded, variant)  # names the variants there are
    return recipe, loaded.images_of(variant)


def prepare(
    name: str,
    data: DataSpec,
    home: Home,
    source: Path | None,
    on_progress: Callable[[int, int], None],
    say: Say,
    *,
    download: bool,
) -> ImageStore:
    """Prepare a study's images, or find them prepared; ``download`` gets CelebA first.

    Raises:
        UsageError: ``download`` for anything but CelebA without a folder of its own.
    """
    from harness.data.downloads import download_celeba
    from harness.data.store import open_store

    if download and (data.source != "celeba" or source is not None):
        raise UsageError("--download is for CelebA, without DATA", "Other sets are downloaded when they are needed.")
    if download:
        source = download_celeba(home, say)
    return open_store(home, data, source, study=name, on_progress=on_progress, say=say)


def prepared(name: str, data: DataSpec, home: Home, source: Path | None, say: Say) -> ImageStore:
    """The prepared images of a study.

    Raises:
        NotFoundError: they are not prepared yet.
    """
    from harness.data.store import existing_store, find_material

    store = existing_store(home, find_material(home, data, source, study=name, say=say, may_download=False))
    if store is None:
        raise NotFoundError(
            f"the images of {name} are not prepared yet", "`harness data prepare` does that, with the same arguments."
        )
    return store


def describe(store: ImageStore) -> Iterator[tuple[str, str]]:
    """(what, finding) about prepared images, every file that was left out included."""
    n, height, width, channels = store.manifest["shape"]
    yield "images", f"{n:,} of {width}x{height} px, {'grey' if channels == 1 else 'colour'}"
    if store.n_held_out:
        yield "split", f"{store.n_train:,} to train on, {store.n_held_out:,} held out ({store.split_rule})"
    yield "size", f"{n * height * width * channels / 1e6:,.1f} MB in {store.path}"
    yield "fingerprint", store.fingerprint
    yield "preparation", ", ".join(f"{key} {value}" for key, value in store.manifest["preparation"].items())
    yield "converted", f"{len(store.manifest['converted']):,}"
    yield "left out", f"{len(store.rejected):,}"
    for name, why in store.rejected.items():
        yield "", f"{name}: {why}"


def contact_sheet(store: ImageStore, n: int, out: Path) -> str:
    """Write a sheet of n images, evenly spread over the set; return a sentence on it."""
    import torch

    from harness.scoring.sampling import image_grid
    from harness.training.attempt import save_png

    images = store.tensor()
    n = min(n, len(images))
    chosen = torch.linspace(0, len(images) - 1, n).long()
    pixels = images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
    save_png(out, image_grid(pixels))
    return f"{n} of {len(images):,} images in {out}"
