"""Photographs that come inside scikit-image and scikit-learn, as backgrounds.

Only photographs with a clear free licence are used (see `playground/assets/README.md`).  The left part of every
photograph serves training and the right part testing, so no background pixel is shared between the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["train", "test"]

#: name -> package and path of the file inside it
PHOTOS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}

#: Share of a photograph's width that belongs to training; the rest is for testing.
TRAIN_SHARE = 0.65
#: Photographs are brought to this height first, so that crops of all of them show things of similar size.
HEIGHT = 300


def _package_file(package: str, path: str) -> Path:
    """The file of an installed package, found without importing the package (quicker, fewer side effects)."""
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"The package {package!r} holds the photographs and is not installed; "
            "install scikit-image and scikit-learn."
        )
    return Path(spec.origin).parent / path


def load_photos(split: Split) -> list[Image.Image]:
    """The training or testing part of every photograph, RGB, `HEIGHT` pixels high.

    Raises:
        ModuleNotFoundError: scikit-image or scikit-learn is missing.
        ValueError: `split` is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"There is no split {split!r}; choose 'train' or 'test'.")
    parts = []
    for package, path in PHOTOS.values():
        photo = Image.open(_package_file(package, path)).convert("RGB")
        width = round(photo.width * HEIGHT / photo.height)
        photo = photo.resize((width, HEIGHT), Image.Resampling.BICUBIC)
        border = round(width * TRAIN_SHARE)
        box = (0, 0, border, HEIGHT) if split == "train" else (border, 0, width, HEIGHT)
        parts.append(photo.crop(box))
    return parts


def random_crop(photos: list[Image.Image], size: int, rng: np.random.Generator) -> np.ndarray:
    """A square crop of a random photograph at a random scale and brightness: [size, size, 3] float32 in 0..255."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(size, min(photo.width, photo.height, 2 * size) + 1))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    box = (left, top, left + side, top + side)
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop, dtype=np.float32) * np.float32(rng.uniform(0.7, 1.1))
