"""The verb that prepares, shows and exports the images of a study or recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.display import TrainingProgress, say
from harness.cli.front import front
from harness.cli.options import DATA, PATH, STUDY, Whole, flag, option, required
from harness.cli.trainings import RECIPE, VARIANT, chosen_recipe
from harness.errors import DataError, NotFoundError, UsageError
from harness.home import Home

if TYPE_CHECKING:
    from harness.data.store import ImageStore
    from harness.spec.tables import DataSpec


@front.verb(
    "data", "prepare, look at, or export the images of a study or recipe",
    required("action", click.Choice(["prepare", "info", "grid", "export"]),
             "prepare: decode ahead of time; info: count, size, fingerprint, files left out; grid: a contact sheet; "
             "export: the reference images of a started study as PNG files"),
    STUDY, RECIPE, VARIANT, DATA,
    flag("--download", "prepare: get CelebA through torchvision, accepting its terms"),
    option("--out", PATH, "grid: the PNG to write, else NAME-images.png; export: the folder"),
    click.Option(["-n"], type=Whole(), default=64, show_default=True, help="grid: number of images"),
)  # fmt: skip
def data(given: Any) -> None:
    home = Home.from_environment()
    recipe, variant = chosen_recipe(given, rival="study")
    if given.action == "export":
        _export(given, home)
        return
    name, wanted = _wanted(given.study, recipe, variant)
    if given.action == "info":
        _describe(_prepared(name, wanted, home, given.data))
        return
    with TrainingProgress(name) as progress:
        store = _prepare(name, wanted, home, given, progress.images, progress.say)
    if given.action == "prepare":
        _describe(store)
        return
    from harness.scoring.reference import save_sheet

    out = given.out or Path(f"{name}-images.png")
    say(f"{save_sheet(out, store, given.n)} of {len(store):,} images in {out}")


def _wanted(study: str, recipe: str | None, variant: str | None) -> tuple[str, DataSpec]:
    """(name, images) of a study file, or of a recipe's variant."""
    from harness.spec.files import load_recipe, load_study_file

    if recipe is None:
        spec = load_study_file(study)
        return spec.name, spec.data
    loaded = load_recipe(recipe)
    variant = variant or loaded.default_variant
    loaded.configuration(variant)  # names the variants there are
    return recipe, loaded.images_of(variant)


def _prepare(
    name: str,
    data: DataSpec,
    home: Home,
    given: Any,
    on_progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> ImageStore:
    from harness.data.downloads import download_celeba
    from harness.data.store import open_store

    source = given.data
    if given.download and (data.source != "celeba" or source is not None):
        raise UsageError("--download is for CelebA, without DATA", "Other sets are downloaded when they are needed.")
    if given.download:
        source = download_celeba(home, say)
    return open_store(home, data, source, study=name, on_progress=on_progress, say=say)


def _prepared(name: str, data: DataSpec, home: Home, source: Path | None) -> ImageStore:
    from harness.data.material import find_material
    from harness.data.store import existing_store

    store = existing_store(home, find_material(home, data, source, study=name, say=say, may_download=False))
    if store is None:
        raise NotFoundError(
            f"the images of {name} are not prepared yet", "`harness data prepare` does that, with the same arguments."
        )
    return store


def _describe(store: ImageStore) -> None:
    """Say everything about prepared images, every file that was left out included."""
    n, height, width, channels = store.manifest["shape"]
    rows = [("images", f"{n:,} of {width}x{height} px, {'grey' if channels == 1 else 'colour'}")]
    if store.n_held_out:
        split = f"{store.n_train:,} to train on, {store.n_held_out:,} held out ({store.split_rule})"
        rows.append(("split", split))
    rows += [
        ("size", f"{n * height * width * channels / 1e6:,.1f} MB in {store.path}"),
        ("fingerprint", store.fingerprint),
        ("preparation", ", ".join(f"{key} {value}" for key, value in store.manifest["preparation"].items())),
        ("converted", f"{len(store.manifest['converted']):,}"),
        ("left out", f"{len(store.rejected):,}"),
        *(("", f"{name}: {why}") for name, why in store.rejected.items()),
    ]
    for what, finding in rows:
        say(f"{what:12} {finding}")


def _export(given: Any, home: Home) -> None:
    """Write the real images that a study's final scores compare with as PNG files."""
    if given.recipe:
        raise UsageError("export writes the reference images of a started study", "Leave --recipe out.")
    if given.out is None:
        raise UsageError("export needs a folder to write to", "Say --out FOLDER.")
    from harness.data.store import open_store
    from harness.scoring.reference import save_reference
    from harness.store.records import StudyAttrs
    from harness.store.studies import started_study, stored_spec

    study = started_study(given.study, home)
    spec = stored_spec(study)
    store = open_store(home, spec.data, given.data, study=spec.name, on_progress=lambda *_: None, say=say)
    if store.fingerprint != StudyAttrs.parse(study.user_attrs).dataset["fingerprint"]:
        raise DataError("these are not the images that the study was run on", "Give the same DATA.")
    say(f"{save_reference(given.out, store, spec.scoring.final)} real images in {given.out}")
