"""Real data sets by name."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from .dataset import Dataset
from .readers import read_csv
from .sources import SOURCES, Source

#: Names of the data sets that `load` knows.
NAMES: tuple[str, ...] = ("diabetes", *SOURCES)


def load(name: str) -> Dataset:
    """A real data set, in its original units and its original order of rows.

    "diabetes" comes with scikit-learn. Any other data set is read from the folder that the
    environment variable ``GP_DEQ_DATA`` names, if it has the original file or the CSV file of the
    same numbers. Otherwise it is downloaded once to the user's cache folder, or to the folder that
    ``GP_DEQ_CACHE`` names. Every file is checked by its SHA-256.

    Args:
        name: Name of the data set, one of `NAMES`; "_" is read as "-".

    Returns:
        The data set.

    Raises:
        ValueError: there is no such data set, or a file has another checksum than it should.
        FileNotFoundError: the data are neither on this machine nor can they be downloaded, or the
            cache folder cannot be read or written.
        ImportError: a package of the extra ``data`` is missing.

    Example:
        >>> data = load("diabetes")
        >>> data.X.shape, data.feature_names[2]
        (torch.Size([442, 10]), 'bmi')
    """
    key = name.replace("_", "-")
    if key == "diabetes":
        return load_diabetes()
    if key == "energy":
        raise ValueError("energy has two targets: load 'energy-heating' or 'energy-cooling'.")
    if key not in SOURCES:
        raise ValueError(f"no data set {name!r}; there are {', '.join(NAMES)}.")
    source = SOURCES[key]
    table = _read_own(source)
    if table is None:
        table = source.read(_download(key, source), source.columns)
    values = torch.from_numpy(table)
    return Dataset(
        name=key,
        X=values[:, :-1].contiguous(),
        y=values[:, -1].contiguous(),
        feature_names=source.feature_names,
        target_name=source.target_name,
    )


def load_diabetes() -> Dataset:
    """The diabetes data of Efron et al. (2004): 442 patients, 10 measurements each.

    The target is a measure of disease progression one year after the measurements.

    Returns:
        The data in their original units.

    Example:
        >>> load_diabetes().X.shape
        torch.Size([442, 10])
    """
    from sklearn.datasets import load_diabetes as load

    bunch = load(scaled=False)
    return Dataset(
        name="diabetes",
        X=torch.as_tensor(bunch.data, dtype=torch.float64),
        y=torch.as_tensor(bunch.target, dtype=torch.float64),
        feature_names=tuple(bunch.feature_names),
        target_name="disease_progression",
    )


def _read_own(source: Source) -> np.ndarray | None:
    """The numbers of a file in the folder ``GP_DEQ_DATA``; None if it has neither file."""
    folder = os.environ.get("GP_DEQ_DATA")
    if not folder:
        return None
    refused = []
    for name, expected, read, columns in (
        (source.file, source.sha256, read_csv, None),
        (source.raw_file, source.raw_sha256, source.read, source.columns),
    ):
        path = Path(folder).expanduser() / name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == expected:
            return read(path, columns)
        refused.append(f"{path} has the SHA-256 {found}, but {expected} is expected")
    if refused:
        raise ValueError(
            f"{'; '.join(refused)}. Replace the file by an intact copy of {source.url}, saved as "
            f"{source.raw_file}, or remove it and the data are downloaded instead."
        )
    return None


def _download(name: str, source: Source) -> Path:
    """The path of the original file in the cache folder, downloaded if it is not there yet."""
    try:
        import pooch
        from requests import RequestException
    except ImportError as error:
        raise ImportError(
            f'downloading {name} needs pooch: pip install "gp_deq[data]"; without it, '
            f"{_own_way(source)}"
        ) from error
    cache = Path(os.environ.get("GP_DEQ_CACHE") or pooch.os_cache("gp_deq"))
    try:
        # pooch downloads to a temporary file and renames it once its checksum is right; without an
        # answer for 30 seconds, its default, it gives up
        path = pooch.retrieve(
            source.url,
            known_hash=f"sha256:{source.raw_sha256}",
            path=cache,
            downloader=pooch.HTTPDownloader(timeout=30),
        )
    except RequestException as error:
        raise FileNotFoundError(
            f"{name} is neither on this machine nor could it be downloaded. Either "
            f"{_own_way(source)}, or connect to the internet: {source.url} failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is not on this machine, and the cache folder {cache} cannot be read or "
            f"written ({error.strerror or error}). Either set the environment variable "
            f"GP_DEQ_CACHE to a folder that can, or {_own_way(source)}."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{source.url} gave another file than expected, which was not kept: {error} "
            f"Try again, or {_own_way(source)}."
        ) from error
    return Path(path)


def _own_way(source: Source) -> str:
    """The part of a message that says how to provide the file without a download."""
    folder = os.environ.get("GP_DEQ_DATA")
    state = f"{folder} has neither" if folder else "it is not set"
    return (
        f"set the environment variable GP_DEQ_DATA to a folder with {source.raw_file}, a copy of "
        f"{source.url}, or with {source.file} ({state})"
    )
