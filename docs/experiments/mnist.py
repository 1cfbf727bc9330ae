"""Images of handwritten digits, from a file of the user's, in the scalings of the experiments."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_FILES = ("mnist_10k.npz", "mnist.npz")
_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_COMPONENTS = 256


class Images(NamedTuple):
    """MNIST [LeCun, Cortes and Burges, 1998].

    Args:
        train_x: Pixels between zero and one, ``n x 784``.
        train_y: Digits, ``n``.
        test_x: ``m x 784``.
        test_y: ``m``.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_mnist() -> Images:
    """The images in the folder that the environment variable ``GP_DEQ_DATA`` names.

    They are read from ``mnist_10k.npz`` or from ``mnist.npz``, the file that Keras has: arrays
    ``x_train``, ``y_train``, ``x_test`` and ``y_test``. The labels of the former go round the
    digits, so that its first rows are balanced.

    Raises:
        FileNotFoundError: there is no such file.
    """
    folder = os.environ.get("GP_DEQ_DATA")
    paths = [Path(folder).expanduser() / name for name in _FILES] if folder else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        state = f"{folder} has neither" if folder else "it is not set"
        raise FileNotFoundError(
            "MNIST is not on this machine: set the environment variable GP_DEQ_DATA to a folder "
            f"with {_FILES[0]} or with {_FILES[1]}, a copy of {_URL} ({state})."
        )
    with np.load(path) as arrays:
        x = [
            torch.from_numpy(arrays[f"x_{part}"]).flatten(1).double() / 255
            for part in ("train", "test")
        ]
        y = [torch.from_numpy(arrays[f"y_{part}"]).long() for part in ("train", "test")]
    return Images(x[0], y[0], x[1], y[1])


def _standard(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _unit(x: Tensor) -> Tensor:
    centred = _standard(x)
    return centred / centred.norm(dim=-1, keepdim=True)


def _whitened(x: Tensor) -> Tensor:
    centred = _standard(x)
    _, vectors = torch.linalg.eigh(centred.mT @ centred)
    scores = centred @ vectors[:, -_COMPONENTS:]
    return scores / scores.std(0)


#: Maps from all training images to inputs, by name: the images less their mean; each divided by its
#: norm besides; the first 256 principal components, each divided by its standard deviation. The
#: experiments divide them by one number more, for a mean squared norm of one.
SCALINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "standard": _standard,
    "unit": _unit,
    "whitened": _whitened,
}
