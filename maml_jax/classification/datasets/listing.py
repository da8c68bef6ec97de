"""Lists the image files of class folders and splits.

Broken links, folders in a class folder, and a file in two places are errors. Other files and
folders are skipped with a warning. Nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from maml_jax.classification.datasets import builder
from maml_jax.classification.datasets.messages import DataError, listed, note, short_digest

MOST_BYTES = 2**29  # maximum size of an image file
SPLIT_NAMES = {
    "train": ("train", "training", "base", "background"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "novel", "evaluation"),
}
LAYOUTS = (
    "DIR/{train,val,test}/CLASS/IMAGE, or DIR/CLASS/IMAGE; a split may also be called "
    f"{', '.join(name for names in SPLIT_NAMES.values() for name in names[1:])}"
)


class Entries(NamedTuple):
    """The entries of a folder in order of names: image files, folders and others."""

    images: list[Path]
    folders: list[Path]
    others: list[Path]


class Listed(NamedTuple):
    """An image file.

    Attributes:
        class_name: its class.
        name: of the example, unique in its class.
        path: of the file.
    """

    class_name: str
    name: str
    path: Path


def look_into(folder: str | Path) -> Entries:
    """Sorts the entries of a folder by kind; follows links; hidden entries count as others.

    Raises:
        DataError: no such folder, an unreadable folder, or broken links.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.")
    Image.init()
    entries = Entries([], [], [])
    dangling = []
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    for path in paths:
        if path.name.startswith("."):
            entries.others.append(path)
        elif path.is_symlink() and not path.exists():
            dangling.append(f"{path} -> {path.readlink()}")
        elif path.is_dir():
            entries.folders.append(path)
        elif path.suffix.lower() in Image.EXTENSION and path.is_file():
            entries.images.append(path)
        else:
            entries.others.append(path)
    if dangling:
        raise DataError(
            f"{len(dangling)} link(s) in {folder} lead nowhere: {listed(dangling, 2)}. Fetch "
            "their targets (`datalad get`, `git annex get`, `dvc pull`), or remove the links."
        )
    return entries


def split_folders(folder: str | Path) -> dict[str, Path]:
    """Returns the folders of splits in a folder, under any of their names; may be empty.

    A folder with the name of a split counts as a split if it holds folders; otherwise it is a class
    of this name.

    Raises:
        DataError: two folders for one split, or splits without class folders.
    """
    split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    named: dict[str, list[Path]] = {}
    for path in look_into(folder).folders:
        if path.name.lower() in split_of:
            named.setdefault(split_of[path.name.lower()], []).append(path)
    inside = {path: look_into(path).folders for paths in named.values() for path in paths}
    if not any(inside.values()):
        if {"train", "test"} <= named.keys():
            raise DataError(
                f"{named['train'][0]} and {named['test'][0]} must hold a folder for each class; "
                f"found none. Layouts: {LAYOUTS}."
            )
        return {}
    for split, paths in named.items():
        if len(paths) > 1:
            raise DataError(
                f"{listed(paths)} are all names of split {split!r} and are not merged. Keep one."
            )
    for split, (path,) in named.items():
        if path.name != split:
            note(f"{path} is read as split {split!r}.")
    return {split: path for split, (path,) in named.items()}


def class_folders(folder: str | Path) -> list[Path]:
    """Returns the class folders in a folder; warns of other entries."""
    entries = look_into(folder)
    note_skipped(folder, [*entries.images, *entries.others], "in no class folder")
    return entries.folders


def list_images(folders: Iterable[Path]) -> list[Listed]:
    """Returns the files in class folders whose extension is that of an image format.

    Raises:
        DataError: a class folder has no such file, or holds folders.
    """
    images = []
    for folder in folders:
        entries = look_into(folder)
        if entries.folders:
            raise DataError(
                f"class folder {folder} holds folders: {listed(f.name for f in entries.folders)}. "
                "They are not merged. Move the images of each class to one folder. "
                f"Layouts: {LAYOUTS}."
            )
        note_skipped(folder, entries.others)
        if not entries.images:
            raise DataError(f"folder {folder} has no images in a format that Pillow reads.")
        images += [Listed(folder.name, path.name, path) for path in entries.images]
    return images


def list_below(folder: str | Path) -> list[Listed]:
    """Returns the image files in a folder and all folders below it; their class is its name.

    Raises:
        DataError: no image files.
    """
    folder = Path(folder)
    images: list[Listed] = []
    visited: set[Path] = set()

    def walk(where: Path) -> None:
        if where.resolve() in visited:
            note(f"skipped {where}: it links to a folder that was read already.")
            return
        visited.add(where.resolve())
        entries = look_into(where)
        note_skipped(where, entries.others)
        for path in entries.images:
            images.append(Listed(folder.name, path.relative_to(folder).as_posix(), path))
        for path in entries.folders:
            walk(path)

    walk(folder)
    if not images:
        raise DataError(f"folder {folder} has no images in a format that Pillow reads.")
    return images


def note_skipped(folder: str | Path, paths: Sequence[Path], why: str = "not images") -> None:
    """Warns of skipped entries of a folder."""
    if paths:
        note(f"skipped in {folder} ({why}): {listed((path.name for path in paths), 4)}.")


def contents(files: Iterable[Listed]) -> Iterator[builder.File]:
    """Yields the content of files; reads each when the iteration reaches it."""
    for file in files:
        size = file.path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{file.path} has {size:,} bytes; expected an image of {MOST_BYTES:,} or fewer."
            )
        yield file.class_name, file.name, file.path.read_bytes()


def check_once(files: Mapping[str, Iterable[Listed]]) -> None:
    """Raises a DataError if one image file has two places, by links or another spelling."""
    places: dict[tuple[int, int], str] = {}
    for split, images in files.items():
        for image in images:
            stat = image.path.stat()
            here = f"{image.path} (split {split!r}, class {image.class_name})"
            first = places.setdefault((stat.st_dev, stat.st_ino), here)
            if first is not here:
                raise DataError(
                    f"{first} and {here} are one file. Keep each image in one class of one split."
                )


def source_of_files(name: str, files: Mapping[str, Sequence[Listed]]) -> builder.Source:
    """Makes a source of image files by split; its fingerprint changes with files and labels.

    Raises:
        DataError: one image file has two places.
    """
    check_once(files)
    made_from = short_digest(
        f"{split}:{file.class_name}:{file.name}:{stat.st_size}:{stat.st_mtime_ns}"
        for split, images in files.items()
        for file in images
        for stat in [file.path.stat()]
    )
    return builder.Source(
        name, made_from, lambda _: {split: contents(images) for split, images in files.items()}
    )
