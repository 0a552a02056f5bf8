"""The published systems: a list, a page on each, and the page in the documents."""

from __future__ import annotations

from collections.abc import Iterator

from harness.gan.architecture import discriminator_layers, generator_layers, parameter_counts
from harness.gan.hparams import HParams
from harness.spec.files import file_names, load_recipe
from harness.spec.recipes import Recipe


def recipes_table() -> Iterator[str]:
    """A line for each recipe, a line for each variant below it."""
    for name in file_names("recipe"):
        recipe = load_recipe(name)
        yield f"{name:16} {recipe.data.image_size:3} px  {recipe.title} ({recipe.source})"
        for variant, chosen in recipe.variants.items():
            yield f"  {variant:14} {chosen.note}"
    yield "harness recipes NAME shows where text and code differ; harness train --recipe NAME --variant V trains it"


def recipe_page(name: str) -> str:
    """Everything about one recipe, for a terminal."""
    recipe = load_recipe(name)
    lines = [
        f"{name}: {recipe.title}",
        f"  source    {recipe.source}",
        f"  images    {recipe.images}",
        f"  training  {recipe.training}",
        f"  prepared  {_prepared(recipe)}",
    ]
    for variant, chosen in recipe.variants.items():
        hp = recipe.configuration(variant)
        lines += ["", f"  {variant}: {chosen.note}", *(f"    {line}" for line in _network_lines(hp))]
    if recipe.differences:
        lines += ["", "  where text and code differ:"]
        for row in recipe.differences:
            switch = ", ".join(row.switch) or "none, it changes no result"
            lines += [f"    {row.what} (switch: {switch})", f"      written: {row.written}"]
            lines += [f"      coded:   {row.coded}"]
    if recipe.left_out:
        lines += ["", "  not reproduced, or assumed:", *(f"    {text}" for text in recipe.left_out)]
    return "\n".join(lines)


def recipes_markdown() -> str:
    """The page docs/recipes.md."""
    from harness.report.page import filled  # matplotlib takes a second, and the other pages have no figures

    recipes = [load_recipe(name) for name in file_names("recipe")]
    return filled("recipes.md.j2", recipes=recipes, parameter_counts=parameter_counts, prepared=_prepared)


def _prepared(recipe: Recipe) -> str:
    """How the images are cropped and resized, by variant where that differs."""
    ways = {variant: str(recipe.images_of(variant).model_dump(mode="json")["crop"]) for variant in recipe.variants}
    crops = {*ways.values()}
    crop = crops.pop() if len(crops) == 1 else ", ".join(f"{way} ({variant})" for variant, way in ways.items())
    return f"crop {crop}, resized to {recipe.data.image_size} px, {recipe.data.resample or 'bicubic'}"


def _network_lines(hp: HParams) -> Iterator[str]:
    g, d = parameter_counts(hp)
    down = [f"{layer.outputs}x{layer.size}x{layer.size}" for layer in discriminator_layers(hp)]
    up = [f"{layer.outputs}x{layer.size}x{layer.size}" for layer in generator_layers(hp)]
    yield f"G {g:>12,} parameters: z {hp.z_dim} -> {' -> '.join(up)}"
    yield f"D {d:>12,} parameters: {hp.channels}x{hp.image_size}x{hp.image_size} -> {' -> '.join(down)} -> logit"
    yield f"batch {hp.batch_size}, Adam lr {hp.lr_g:g} (G) {hp.lr_d:g} (D), betas {hp.beta1:g} {hp.beta2:g}"
    yield f"z {hp.latent}, BatchNorm {hp.bn}, init {hp.init}"
