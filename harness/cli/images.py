"""The verb that prepares, shows and exports the images of a study or recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli import verbs
from harness.cli.display import NEXT, TrainingProgress, command, say
from harness.cli.trainings import RECIPE, VARIANT, chosen_recipe
from harness.cli.verbs import Whole, argument, flag, front, option
from harness.errors import DataError, NotFoundError, UsageError

if TYPE_CHECKING:
    from harness.data.store import ImageStore
    from harness.spec.tables import DataSpec


@front.verb(
    "data", "prepare, describe, draw or export images of a study or recipe",
    click.Argument(["action"], type=click.Choice(["prepare", "info", "grid", "export"]), metavar="ACTION", help=
                   "prepare: decode the images; info: describe them; grid: draw some; export: write the "
                   "images that final scores compare with, as PNG files"),
    verbs.STUDY, RECIPE, VARIANT, verbs.DATA,
    flag("--download", "prepare: fetch CelebA, and accept its terms"),
    option("--out", verbs.PATH, "grid: the PNG (else NAME-images.png); export: the folder"),
    option("-n", Whole(), "grid: number of images", default=64),
    example="prepare photos32 --data my_photos",
)  # fmt: skip
def data(given: Any) -> None:
    recipe, variant = chosen_recipe(given, rival="study")
    if given.action == "export":
        _export(given)
        return
    from harness.data.downloads import download_celeba
    from harness.data.material import find_material
    from harness.data.store import existing_store, open_store

    name, wanted = _wanted(given.study, recipe, variant)
    home, source = given.home, given.data
    if given.action == "info":
        material = find_material(home, wanted, source, study=name, say=say, may_download=False)
        store = existing_store(home, material)
        if store is None:
            again = "Run `harness data prepare` with the same arguments."
            raise NotFoundError(f"the images of {name} are not prepared yet", again)
        _describe(store)
        return
    with TrainingProgress(name) as progress:
        if given.download:
            if wanted.source != "celeba" or source is not None:
                others = "Other sets are downloaded when they are needed."
                raise UsageError("--download is for CelebA, without --data", others)
            source = download_celeba(home, progress.say)
        store = open_store(home, wanted, source, study=name, on_progress=progress.images, say=progress.say)
    if given.action == "prepare":
        store.require_contrast()
        _describe(store)
        return
    from harness.scoring.sampling import save_png

    out = given.out or Path(f"{name}-images.png")
    save_png(out, store.sheet(given.n))
    say(f"{min(given.n, len(store))} of {len(store):,} images in {out}")


@front.verb(
    "new", "write a study file that fits a folder of images",
    argument("study", "name of the study: the file is search_spaces/STUDY.toml", env="STUDY"), verbs.DATA,
    option("--size", click.Choice(["32", "64"]), "image side (px); 64 is slow without a GPU", default="32"),
    example="flowers --data my_photos",
)  # fmt: skip
def new(given: Any) -> None:
    if given.study is None or given.data is None:
        raise UsageError("new needs a name for the study and a folder of images", "Use: harness new NAME --data FOLDER")
    from harness.api.new import new_study

    with TrainingProgress(given.study) as progress:
        path, sentences = new_study(
            given.study, given.home, given.data,
            image_size=int(given.size), on_progress=progress.images, say=progress.say,
        )  # fmt: skip
    for sentence in sentences:
        say(sentence)
    named = path.stem if path.parent.name else path.name
    say(f"{path} fits them")
    say(command(f"{NEXT}harness sweep {named} --data PATH", given.data))


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


def _describe(store: ImageStore) -> None:
    """Print everything about prepared images, including each file that was left out."""
    n, height, width, channels = store.manifest["shape"]
    rows = [("images", f"{n:,} of {width}x{height} px, {'grey' if channels == 1 else 'colour'}")]
    if store.n_held_out:
        rows += [("split", f"{store.n_train:,} to train on, {store.n_held_out:,} held out ({store.split_rule})")]
    rows += [
        ("size", f"{n * height * width * channels / 1e6:,.1f} MB in {store.path}"),
        ("fingerprint", store.fingerprint),
        ("preparation", ", ".join(f"{key} {value}" for key, value in store.manifest["preparation"].items())),
        *(("range", sentence) for sentence in store.warnings),
        ("converted", f"{len(store.manifest['converted']):,}"),
        ("left out", f"{len(store.rejected):,}"),
        *(("", f"{name}: {why}") for name, why in store.rejected.items()),
    ]
    for what, finding in rows:
        say(f"{what:12} {finding}")


def _export(given: Any) -> None:
    """Write the real images of a study's final scores as PNG files."""
    if given.recipe:
        raise UsageError("export writes the reference images of a started study", "Leave --recipe out.")
    if given.out is None:
        raise UsageError("export needs a folder to write to", "Say --out FOLDER.")
    from harness.data.store import open_store
    from harness.scoring.reference import save_reference
    from harness.store.records import StudyAttrs
    from harness.store.studies import started_study, stored_spec

    study = started_study(given.study, given.home)
    spec = stored_spec(study)
    store = open_store(given.home, spec.data, given.data, study=spec.name, on_progress=lambda *_: None, say=say)
    if store.fingerprint != StudyAttrs.parse(study.user_attrs).dataset["fingerprint"]:
        raise DataError("these are not the images that the study was run on", "Name the same images with --data.")
    say(f"{save_reference(given.out, store, spec.scoring.final)} real images in {given.out}")
