"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings of each (Lake et al. 2015)."""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from maml_jax import checks
from maml_jax.classification.datasets import archives, builder
from maml_jax.classification.datasets.images import SPLITS, ImageClasses
from maml_jax.classification.datasets.messages import (
    DataError,
    describe_bytes,
    listed,
    note,
    short_digest,
)
from maml_jax.classification.datasets.reading import Reading

ARCHIVES = ("images_background.zip", "images_evaluation.zip")
SHA256 = {  # of the official archives; checked for downloads alone
    "images_background.zip": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation.zip": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
}
URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS, SIDE = 20, 105
MOST_BYTES = 2**20  # maximum size of a drawing
SPLITTINGS = ("code", "paper", "background", "vinyals")
LISTS = {split: f"{split}.txt" for split in SPLITS}


def load_omniglot(
    data_dir: str | Path,
    cache_dir: str | Path,
    *,
    splitting: str = "code",
    split_seed: int = 0,
    image_size: int = 28,
    resample: str = "lanczos",
) -> dict[str, ImageClasses]:
    """Loads Omniglot with ink 255 on 0, one channel.

    Args:
        data_dir: the folder, or the parent of a folder `omniglot`, with the archives
            `images_background.zip` and `images_evaluation.zip`. If it has neither, the official
            archives are downloaded to the cache.
        cache_dir: the folder of the cache of decoded images.
        splitting: the splits of characters:

            ============ ===== === ==== ====================================
            value        train val test drawn
            ============ ===== === ==== ====================================
            `code`        1100 100  423 at random, as the original code
            `paper`       1200   -  423 at random, as the paper
            `background`   964   -  659 by alphabet, as the data set's authors
            `vinyals`     1028 172  423 by lists of Vinyals et al. 2016
            ============ ===== === ==== ====================================

            The lists are `vinyals/{train,val,test}.txt` beside the archives, with one character
            `ALPHABET/characterNN` a line and an optional `/rotNNN`. The code of prototypical
            networks contains them in this form.

        split_seed: of the random splits.
        image_size: height and width, pixels.
        resample: as in `Reading`. The original code requests Lanczos but gets the nearest pixel,
            the only resampling of 1-bit images in Pillow: use `"nearest"` to reproduce it.

    Returns:
        Images by split: train, val (for `"code"` and `"vinyals"`) and test.

    Raises:
        DataError: an archive is not Omniglot. The error names missing or invalid files.

    Example:
        >>> from pathlib import Path
        >>> from maml_jax.classification.datasets import load_omniglot
        >>> splits = load_omniglot(Path("data"), Path("cache"))  # doctest: +SKIP
        >>> splits["train"].images.shape  # doctest: +SKIP
        (1100, 20, 28, 28, 1)
    """
    data_dir = Path(data_dir)
    checks.check_choice(splitting, SPLITTINGS, "splitting")
    reading = Reading(image_size, 1, invert=True, resample=resample)
    parts = builder.load(_source(data_dir), reading, cache_dir)
    background, evaluation = (parts[name] for name in CHARACTERS)
    if splitting == "background":
        return {"train": background, "test": evaluation}
    every = ImageClasses(
        np.concatenate([background.images, evaluation.images]),
        np.concatenate([background.counts, evaluation.counts]),
        background.names + evaluation.names,
        background.files,
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
    """Returns the characters of each split, from lists in a folder `vinyals`.

    Raises:
        DataError: missing lists, unknown characters, or a character in two lists.
    """
    folders = (data_dir / "vinyals", data_dir / "omniglot" / "vinyals")
    folder = next((f for f in folders if all((f / n).exists() for n in LISTS.values())), None)
    if folder is None:
        raise DataError(
            f"the lists {', '.join(LISTS.values())} are in neither {folders[0]} nor {folders[1]}; "
            "they come with the code of prototypical networks (data/omniglot/splits/vinyals)."
        )
    lists: dict[str, list[str]] = {}
    place: dict[str, str] = {}
    for split, name in LISTS.items():
        data = (folder / name).read_bytes()
        if describe_bytes(data):
            raise DataError(f"{folder / name} is {describe_bytes(data)}.")
        try:
            lines = data.decode("utf-8-sig").split()
        except UnicodeDecodeError as error:
            raise DataError(f"{folder / name} is not text in UTF-8: {error}.") from None
        characters = sorted({"/".join(line.split("/")[:2]) for line in lines})
        if not characters:
            raise DataError(f"{folder / name} names no characters.")
        for character in characters:
            if character not in known:
                raise DataError(f"{folder / name} names {character!r}, which is not in Omniglot.")
            if character in place:
                raise DataError(f"{character} is in {place[character]} and in {name} of {folder}.")
            place[character] = name
        lists[split] = characters
    return lists


def has_archives(data_dir: Path) -> bool:
    """Returns whether a folder has an archive of Omniglot, so that nothing is downloaded."""
    folders = (data_dir, data_dir / "omniglot")
    return any((folder / name).exists() for folder in folders for name in ARCHIVES)


def _source(data_dir: Path) -> builder.Source:
    for folder in (data_dir, data_dir / "omniglot"):
        paths = [folder / name for name in ARCHIVES]
        dangling = [path for path in paths if path.is_symlink() and not path.exists()]
        if dangling:
            raise DataError(
                f"{dangling[0]} -> {dangling[0].readlink()} leads nowhere. Fetch its target "
                "(`datalad get`, `git annex get`, `dvc pull`), or remove the link."
            )
        for part in CHARACTERS:
            if (folder / part).is_dir():
                note(f"skipped {folder / part}: Omniglot is read from its zip archives alone.")
        present = [path for path in paths if path.exists()]
        if len(present) == 1:
            missing = next(path for path in paths if path not in present)
            raise DataError(f"found {present[0]}, but not {missing}: Omniglot needs both.")
        if present:
            content = short_digest(f"{name}:{crc}" for path in paths for name, crc in _names(path))
            read = functools.partial(_files_of, paths)
            return builder.Source("omniglot", content, read)

    def fetched(download: Callable[[list[str]], list[Path]]) -> Mapping[str, Iterable]:
        urls = [URL + name for name in ARCHIVES]
        try:
            paths = download(urls)
        except OSError as error:
            raise DataError(
                f"Omniglot's archives {' and '.join(ARCHIVES)} are not in {data_dir}, and "
                f"downloading them from {URL} failed ({error}). Put them there by hand."
            ) from error
        for path, name, url in zip(paths, ARCHIVES, urls, strict=True):
            archives.check_sha256(path, SHA256[name], url)
        return _files(paths)

    return builder.Source("omniglot", "official", fetched)


def _files_of(paths: list[Path], download: Any) -> dict[str, Iterator[builder.File]]:
    del download  # the archives exist
    return _files(paths)


def _names(path: Path) -> list[tuple[str, int]]:
    """Returns names and checksums of an archive's drawings; warns of other files in it."""
    with archives.opened(path) as archive:
        drawings, others = _drawings(archive)
        if others:
            note(f"skipped in {path} (not drawings): {listed(others, 4)}.")
        return [(entry.filename, entry.CRC) for entry in drawings.values()]


def _files(paths: Iterable[Path]) -> dict[str, Iterator[builder.File]]:
    """Returns the drawings of both archives. Checks names and counts now, content on reading."""
    parts = dict(zip(CHARACTERS, paths, strict=True))
    for part, path in parts.items():
        with archives.opened(path) as archive:
            drawings, _ = _drawings(archive)
        _check_counts(path, part, Counter(character for character, _ in drawings))
    return {part: _read(path) for part, path in parts.items()}


def _read(path: Path) -> Iterator[builder.File]:
    with archives.opened(path) as archive:
        for (character, name), entry in _drawings(archive)[0].items():
            data = archives.read(archive, entry)
            _check_size(data, f"{path}: {entry.filename}")
            yield character, name, data


def _drawings(
    archive: archives.ZipFile,
) -> tuple[dict[tuple[str, str], archives.ZipInfo], list[str]]:
    """Returns entries by character and name of the drawing, and the names of other entries."""
    drawings: dict[tuple[str, str], archives.ZipInfo] = {}
    others = []
    for entry in archives.entries(archive, MOST_BYTES):
        folders = PurePosixPath(entry.filename).parts
        if not entry.filename.endswith(".png") or len(folders) < 3 or "__MACOSX" in folders:
            others.append(entry.filename)
            continue
        key = "/".join(folders[-3:-1]), folders[-1]
        if key in drawings:
            raise DataError(
                f"{archive.filename}: {drawings[key].filename} and {entry.filename} are one "
                f"drawing of {key[0]}."
            )
        drawings[key] = entry
    return drawings, others


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
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            size = image.size
    except Exception:  # a broken image can raise nearly any exception
        raise DataError(f"{where} is not an image.") from None
    if size != (SIDE, SIDE):
        raise DataError(f"{where} must be {SIDE}x{SIDE} pixels; found {size[0]}x{size[1]}.")
