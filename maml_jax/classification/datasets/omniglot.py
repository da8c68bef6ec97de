"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings of each (Lake et al. 2015)."""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from maml_jax import types
from maml_jax.classification.datasets import builder
from maml_jax.classification.datasets.images import (
    SPLITS,
    DataError,
    ImageClasses,
    Reading,
    describe_bytes,
    short_digest,
)

ARCHIVES = ("images_background.zip", "images_evaluation.zip")
URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS, SIDE = 20, 105
SPLITTINGS = ("code", "paper", "background", "vinyals")
LISTS = {split: f"{split}.txt" for split in SPLITS}


def load_omniglot(
    data_dir: Path,
    cache_dir: Path,
    *,
    splitting: str = "code",
    split_seed: int = 0,
    image_size: int = 28,
    resample: str = "lanczos",
) -> dict[str, ImageClasses]:
    """Omniglot with ink 255 on 0, one channel.

    Args:
        data_dir: where the archives `images_background.zip` and `images_evaluation.zip` are, or in
            a folder `omniglot` of it. If there are none, the official ones are downloaded.
        cache_dir: where what was read is kept.
        splitting: `"code"`: characters at random, 1,100 to train, 100 to validate, 423 to test;
            `"paper"`: 1,200 to train, 423 to test, none to validate; `"background"`: by alphabet,
            as the data set's authors: 964 to train, 659 to test; `"vinyals"`: by lists of
            characters, `vinyals/{train,val,test}.txt` beside the archives, a character
            (`ALPHABET/characterNN`, and perhaps `/rotNNN`) a line. The lists of Vinyals et al.
            2016 come with the code of prototypical networks, in that form.
        split_seed: of the random splittings.
        image_size: height and width, pixels.
        resample: see `Reading`. The original code asks Pillow for Lanczos, and gets the nearest
            pixel, because Pillow resizes 1-bit images in no other way.

    Returns:
        Train, val (for `"code"` and `"vinyals"`) and test.

    Raises:
        DataError: an archive is not Omniglot: names what is missing or of the wrong size.
    """
    types.check_choice(splitting, SPLITTINGS, "splitting")
    reading = Reading(image_size, 1, invert=True, resample=resample)
    parts = builder.load(_source(data_dir), reading, cache_dir)
    background, evaluation = (parts[name] for name in CHARACTERS)
    if splitting == "background":
        return {"train": background, "test": evaluation}
    every = ImageClasses(
        np.concatenate([background.images, evaluation.images]),
        np.concatenate([background.counts, evaluation.counts]),
        background.names + evaluation.names,
    )
    if splitting == "vinyals":
        lists = read_lists(data_dir, set(every.names))
        index = {name: i for i, name in enumerate(every.names)}
        return {split: every.take([index[n] for n in names]) for split, names in lists.items()}
    order = np.random.Generator(np.random.PCG64(split_seed)).permutation(len(every.names))
    bounds = {"code": (1100, 1200), "paper": (1200, 1200)}[splitting]
    train, val, test = np.split(order, bounds)
    splits = {"train": every.take(train), "val": every.take(val), "test": every.take(test)}
    return {name: classes for name, classes in splits.items() if classes.names}


def read_lists(data_dir: Path, known: set[str]) -> dict[str, list[str]]:
    """The characters of each split, from lists in a folder `vinyals`.

    Raises:
        DataError: there are no lists, they name characters that there are not, or one twice.
    """
    folders = (data_dir / "vinyals", data_dir / "omniglot" / "vinyals")
    folder = next((f for f in folders if all((f / n).exists() for n in LISTS.values())), None)
    if folder is None:
        raise DataError(
            f"the lists {', '.join(LISTS.values())} are in neither {folders[0]} nor {folders[1]}; "
            "they come with the code of prototypical networks (data/omniglot/splits/vinyals)."
        )
    lists: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for split, name in LISTS.items():
        lines = (folder / name).read_text().split()
        characters = sorted({"/".join(line.split("/")[:2]) for line in lines})
        for character in characters:
            if character not in known:
                raise DataError(f"{folder / name} names {character!r}, which Omniglot has not.")
            if character in seen:
                raise DataError(f"{character} is in {seen[character]} and in {name} of {folder}.")
            seen[character] = name
        lists[split] = characters
    return lists


def has_archives(data_dir: Path) -> bool:
    """Whether an archive of Omniglot is there, so that nothing will be downloaded."""
    folders = (data_dir, data_dir / "omniglot")
    return any((folder / name).exists() for folder in folders for name in ARCHIVES)


def _source(data_dir: Path) -> builder.Source:
    for folder in (data_dir, data_dir / "omniglot"):
        paths = [folder / name for name in ARCHIVES]
        there = [path for path in paths if path.exists()]
        if len(there) == 1:
            missing = next(path for path in paths if path not in there)
            raise DataError(f"found {there[0]}, but not {missing}: Omniglot needs both.")
        if there:
            found = short_digest(f"{i.filename}:{i.CRC}" for p in paths for i in _entries(p))
            read = functools.partial(_files_of, paths)
            return builder.Source("omniglot", found, read)

    def fetched(download: Callable[[list[str]], list[Path]]) -> Mapping[str, Iterable]:
        try:
            return _files(download([URL + name for name in ARCHIVES]))
        except OSError as error:
            raise DataError(
                f"Omniglot's archives {' and '.join(ARCHIVES)} are not in {data_dir}, and "
                f"downloading them from {URL} failed ({error}). Put them there by hand."
            ) from error

    return builder.Source("omniglot", "official", fetched)


def _files_of(paths: list[Path], download: Any) -> dict[str, list[builder.File]]:
    del download  # the archives are there
    return _files(paths)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [entry for entry in archive.infolist() if entry.filename.endswith(".png")]
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            what = describe_bytes(file.read(512)) or "not a zip archive, or a broken one"
        raise DataError(f"{path} is {what}.") from None


def _files(paths: Iterable[Path]) -> dict[str, list[builder.File]]:
    """The drawings of both archives, checked."""
    parts = {}
    for path, part in zip(paths, CHARACTERS, strict=True):
        entries, files = _entries(path), []
        with zipfile.ZipFile(path) as archive:
            for entry in entries:
                folders = PurePosixPath(entry.filename).parts
                if len(folders) < 3 or "__MACOSX" in folders:
                    continue
                try:
                    data = archive.read(entry)
                except (zipfile.BadZipFile, zlib.error, EOFError):
                    raise DataError(f"{path}: {entry.filename} is damaged.") from None
                _check_size(data, f"{path}: {entry.filename}")
                files.append(("/".join(folders[-3:-1]), folders[-1], data))
        _check_counts(path, part, Counter(character for character, _, _ in files))
        parts[part] = files
    return parts


def _check_counts(path: Path, part: str, drawings: Counter[str]) -> None:
    expected = CHARACTERS[part]
    if len(drawings) != expected:
        raise DataError(
            f"{path} must hold {expected} characters as {part}/ALPHABET/characterNN/*.png; "
            f"found {len(drawings)}."
        )
    for character, count in drawings.items():
        if count != DRAWINGS:
            raise DataError(f"{path}: {character} must have {DRAWINGS} drawings; found {count}.")


def _check_size(data: bytes, where: str) -> None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
    except OSError:
        raise DataError(f"{where} is not an image.") from None
    if size != (SIDE, SIDE):
        raise DataError(f"{where} must be {SIDE}x{SIDE} pixels; found {size[0]}x{size[1]}.")
