"""The images of a study file."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from harness.spec.params import FUNCTION_PATTERN, Table

# left, top, width, height (px)
Box = tuple[
    Annotated[int, Field(ge=0, le=4096)],
    Annotated[int, Field(ge=0, le=4096)],
    Annotated[int, Field(ge=16, le=4096)],
    Annotated[int, Field(ge=16, le=4096)],
]
Crop = Literal["square", "after_resize", "none"] | Annotated[int, Field(ge=16, le=4096)] | Box


SOURCES = ("mnist", "mnist_idx", "fashion_mnist", "cifar10", "svhn", "celeba", "folder")


def _known_source(source: str) -> str:
    # A store is named after its function, and a name has at most 255 bytes.
    if source not in SOURCES and (len(source) > 200 or not re.fullmatch(FUNCTION_PATTERN, source)):
        raise ValueError(f"found {source!r}; use {', '.join(SOURCES)}, or package.module:function of your own")
    return source


class DataSpec(Table):
    """The images of the study."""

    source: Annotated[str, AfterValidator(_known_source)] = Field(
        description="mnist: 5,000 digits shipped in a package; mnist_idx, fashion_mnist: the full sets as idx files; "
        "cifar10, svhn: the published files; celeba: CelebA photographs; folder: any images, as files or as a NumPy "
        "array; package.module:function: what your own function returns or yields.",
        json_schema_extra={"anyOf": [{"enum": list(SOURCES)}, {"pattern": FUNCTION_PATTERN}]},
    )
    image_size: Literal[16, 32, 64, 128, 256] = Field(description="Side of the square training images (px).")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for colour.")
    crop: Crop = Field(
        "square",
        description="square: the largest centred square, then resized; a number: a centred square of that side (px), "
        "then resized; [left, top, width, height]: that box (px), stretched to a square; after_resize: the shorter "
        "side is resized, then the centre cropped; none: stretched to a square whatever the shape.",
    )
    resample: Literal["bicubic", "bilinear", "lanczos"] | None = Field(
        None, description="Pillow's filter for resizing, antialiased; bicubic unless given."
    )
    sharpen: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Sharpness factor after resizing, as torchvision's: 1 changes nothing, 2 sharpens.",
    )
    held_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep a part of the images out of training: the source's own test part where it has one, else this "
        "share, chosen by hash of the file names.",
    )

    @model_validator(mode="after")
    def _not_enlarged(self) -> Self:
        sides = self.crop[2:] if isinstance(self.crop, tuple) else (self.crop,) if isinstance(self.crop, int) else ()
        if any(side < self.image_size for side in sides):
            raise ValueError(f"crop {self.crop} is smaller than image_size = {self.image_size}; nothing is enlarged")
        return self
