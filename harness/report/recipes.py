"""The published systems: a list, a page on each, and the page in the documents."""

from __future__ import annotations

from collections.abc import Iterator

from harness.gan.architecture import discriminator_layers, generator_layers, parameter_counts
from harness.gan.hparams import HParams
from harness.spec.files import file_names, load_recipe
from harness.spec.recipes import Recipe

_INTRO = """# Recipes

Published DCGAN systems, each as its text says (`as_written`) and as its code does (`as_coded`). Bugs are switches of
the configuration, not copies of code. This page is printed by `harness recipes --markdown`; the files are in
[search_spaces/recipes](../search_spaces/recipes).

```
make train RECIPE=svhn32                                  # downloads SVHN; 25 epochs, as published
make train RECIPE=celeba64 VARIANT=as_written DATA=/path/to/celeba KIMG=500 SAMPLES=1000
```

Parameters are counted by the tool. A training writes losses, sample grids after every epoch (ten in a training of
fewer, at most a hundred), checkpoints every minute, weights, scores, an MLflow run (experiment `recipes`) and
`reports/trainings/NAME/report.md`; started again, it continues.
"""


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
        f"  training  {recipe.training.epochs:g} epochs",
    ]
    for variant, chosen in recipe.variants.items():
        hp = recipe.configuration(variant)
        lines += ["", f"  {variant}: {chosen.note}", *(f"    {line}" for line in _network_lines(hp))]
    if recipe.differences:
        lines += ["", "  where text and code differ:"]
        for row in recipe.differences:
            switch = ", ".join(row.switch) or "none, it changes no result"
            lines += [
                f"    {row.what} (switch: {switch})",
                f"      written: {row.written}",
                f"      coded:   {row.coded}",
            ]
    if recipe.left_out:
        lines += ["", "  not reproduced, or assumed:", *(f"    {text}" for text in recipe.left_out)]
    return "\n".join(lines)


def recipes_markdown() -> str:
    """The page docs/recipes.md."""
    rows = [
        _INTRO,
        "| recipe | variant | px | epochs | batch | G parameters | D parameters | source |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    recipes = [load_recipe(name) for name in file_names("recipe")]
    for recipe in recipes:
        for variant in recipe.variants:
            hp = recipe.configuration(variant)
            g, d = parameter_counts(hp)
            rows.append(
                f"| [{recipe.name}](#{recipe.name}) | {variant} | {hp.image_size} | {recipe.training.epochs:g} | "
                f"{hp.batch_size} | {g:,} | {d:,} | {recipe.title}; {recipe.source} |"
            )
    for recipe in recipes:
        rows += ["", *_section(recipe)]
    return "\n".join(rows) + "\n"


def _section(recipe: Recipe) -> Iterator[str]:
    yield f"## {recipe.name}"
    yield ""
    yield f"{recipe.title}; {recipe.source}. Images: {recipe.images}."
    yield ""
    for variant, chosen in recipe.variants.items():
        yield f"- **{variant}**: {chosen.note}"
    if recipe.differences:
        yield ""
        yield "| what | as written | as coded | switch |"
        yield "|---|---|---|---|"
        for row in recipe.differences:
            switch = ", ".join(f"`{name}`" for name in row.switch) or "none: changes no result"
            yield f"| {row.what} | {row.written} | {row.coded} | {switch} |"
    if recipe.left_out:
        yield ""
        yield "Not reproduced, or assumed:"
        yield ""
        for text in recipe.left_out:
            yield f"- {text}"


def _network_lines(hp: HParams) -> Iterator[str]:
    g, d = parameter_counts(hp)
    down = [f"{layer.outputs}x{layer.size}x{layer.size}" for layer in discriminator_layers(hp)]
    up = [f"{layer.outputs}x{layer.size}x{layer.size}" for layer in generator_layers(hp)]
    yield f"G {g:>12,} parameters: z {hp.z_dim} -> {' -> '.join(up)}"
    yield f"D {d:>12,} parameters: {hp.channels}x{hp.image_size}x{hp.image_size} -> {' -> '.join(down)} -> logit"
    yield f"batch {hp.batch_size}, Adam lr {hp.lr_g:g} (G) {hp.lr_d:g} (D), betas {hp.beta1:g} {hp.beta2:g}"
    yield f"z {hp.latent}, BatchNorm {hp.bn}, init {hp.init}"
