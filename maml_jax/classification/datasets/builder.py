"""Decodes image files of all data sets to arrays of one size, and caches the arrays.

A source yields the bytes of image files by split, class and name. A TFDS builder (without
TensorFlow) writes the decoded images as PNG to array records, in a folder named after the source,
its content and the reading. Later starts read the records. Without TFDS there is no cache, and
every start decodes the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from maml_jax.classification.datasets import faults
from maml_jax.classification.datasets.images import Example, ImageClasses, stack
from maml_jax.classification.datasets.messages import DataError, listed, note, short_digest
from maml_jax.classification.datasets.reading import Reading

with contextlib.suppress(ImportError):
    import tensorflow_datasets as tfds

File = tuple[str, str, bytes]  # class, name of the example, content
PACKAGES = ("tensorflow_datasets", "array_record")
LONG_S = 5.0  # of decoding, for a warning that it is repeated
MOST_BROKEN = 5  # broken files that an error names
NAME, FORMAT = "image_classes", "1.1.0"  # of the cache
TIMEOUT_S = 30.0  # of a download, without an answer


@dataclasses.dataclass(frozen=True)
class Source:
    """The image files of a data set.

    Attributes:
        name: of the data set.
        fingerprint: of the content; it must change with the content.
        files: `files(download) -> {split: files}`; `download(urls) -> paths` fetches archives.
    """

    name: str
    fingerprint: str
    files: Callable[[Callable[[list[str]], list[Path]]], Mapping[str, Iterable[File]]]


def load(source: Source, reading: Reading, cache_dir: str | Path) -> dict[str, ImageClasses]:
    """Loads the splits of a source, from the cache where it holds them.

    If the cache is damaged, this warns, keeps the damaged folder under another name, and deletes it
    once a new cache is complete. Without the packages of the extra `data` this decodes the source's
    files on each call, and warns if that takes more than `LONG_S` seconds.

    Raises:
        DataError: the source's content is invalid.
        MemoryError, OSError: the machine cannot read the cache. The cache stays unchanged.
    """
    cache_dir = Path(cache_dir)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        splits = source.files(functools.partial(download, cache_dir / "downloads"))
        begun = time.monotonic()
        images = {
            split: stack(decoded(files, reading), _where(source, split))
            for split, files in splits.items()
        }
        took = time.monotonic() - begun
        if took > LONG_S:
            note(
                f"decoding the images took {took:.0f} s, which each start repeats: they are not "
                f"cached. The cache needs {', '.join(missing)} (pip install 'maml-jax[data]')."
            )
        return images
    folder = cache_dir / NAME / _config_name(source, reading) / FORMAT
    damaged = folder.with_name(f"{FORMAT}.damaged")
    if folder.exists():
        try:
            return _read_all(source, reading, cache_dir)
        except Exception as error:  # a damaged file can raise nearly any exception
            if faults.is_of_machine(error):
                raise
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            note(f"cached images in {folder} are damaged ({reason}); decoding the files again.")
            shutil.rmtree(damaged, ignore_errors=True)
            folder.rename(damaged)
    with _quiet():
        _make_builder(source, reading, cache_dir).download_and_prepare()
    shutil.rmtree(damaged, ignore_errors=True)
    return _read_all(source, reading, cache_dir)


def _where(source: Source, split: str) -> str:
    return f"split {split!r} of {source.name}"


def _config_name(source: Source, reading: Reading) -> str:
    return f"{source.name}-{short_digest([source.fingerprint, repr(dataclasses.astuple(reading))])}"


def _make_builder(source: Source, reading: Reading, cache_dir: Path) -> Any:
    return _builder_class()(
        source=source,
        reading=reading,
        config=tfds.core.BuilderConfig(name=_config_name(source, reading)),
        data_dir=str(cache_dir),
        file_format="array_record",
    )


def _builder_class() -> type:
    class ImageClassesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Images by class, at one size."""

        VERSION = tfds.core.Version(FORMAT)
        name = NAME
        url_infos: ClassVar[dict[str, Any]] = {}  # no checksums: sources check the content

        def __init__(self, *, source: Source, reading: Reading, **kwargs: Any):
            self._source, self._reading = source, reading
            super().__init__(**kwargs)

        def _info(self):
            shape = (self._reading.size, self._reading.size, self._reading.channels)
            features = {
                "image": tfds.features.Image(shape=shape, encoding_format="png"),
                "class_name": tfds.features.Text(),
                "name": tfds.features.Text(),
                "kind": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # without a network its downloads retry for minutes
            folder = Path(self._data_dir_root) / "downloads"
            splits = self._source.files(functools.partial(download, folder))
            return {split: self._generate_examples(files) for split, files in splits.items()}

        def _generate_examples(self, files):
            for class_name, name, image, kind in decoded(files, self._reading):
                png = io.BytesIO()
                flat = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(flat).save(png, "png", compress_level=1)  # 3x faster
                png.seek(0)
                names = {"class_name": _encoded(class_name), "name": _encoded(name), "kind": kind}
                yield b"\0".join([names["class_name"], names["name"]]), {"image": png, **names}

    return ImageClassesBuilder


def download(folder: Path, urls: Sequence[str]) -> list[Path]:
    """Downloads files to a folder and returns their paths.

    Raises:
        OSError: no network, no such file, or no answer within `TIMEOUT_S` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for url in urls:
        path = folder / url.rpartition("/")[2]
        partial = path.with_name(path.name + ".part")
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
        paths.append(partial.replace(path))
    return paths


def _encoded(name: str) -> bytes:
    """Encodes a name as bytes, also one that is not valid UTF-8."""
    return name.encode("utf-8", "surrogatepass")


def decoded(files: Iterable[File], reading: Reading) -> Iterator[Example]:
    """Decodes files to images, each with the kind of its file (`Reading.decode_kind`).

    Raises:
        DataError: files that are not images. The error names them after the last file.
    """
    broken: list[str] = []
    for class_name, name, data in files:
        try:
            image, kind = reading.decode_kind(data)
            yield class_name, name, image, kind
        except DataError as error:
            broken.append(f"{class_name}/{name} is {error}")
    if broken:
        raise DataError(
            f"{len(broken)} file(s) cannot be read as images: {listed(broken, MOST_BROKEN)}. "
            "Remove or replace them."
        )


def _read_all(source: Source, reading: Reading, cache_dir: Path) -> dict[str, ImageClasses]:
    with _quiet():
        builder = _make_builder(source, reading, cache_dir)
        if not builder.info.splits:
            raise DataError("the cache lists no splits")
        return {
            split: stack(_read(builder, split, reading), _where(source, split))
            for split in sorted(builder.info.splits)
        }


def _read(builder: Any, split: str, reading: Reading) -> Iterator[Example]:
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    expected = builder.info.splits[split].num_examples
    if len(source) != expected:
        raise DataError(f"split {split!r} must have {expected} images; it has {len(source)}")

    def one(example: Mapping[str, Any]) -> Example:
        with Image.open(io.BytesIO(example["image"])) as image:
            array = np.asarray(image)
        array = array.reshape(reading.size, reading.size, reading.channels)
        class_name, name = (example[k].decode("utf-8", "surrogatepass") for k in _NAMES)
        return class_name, name, array, example["kind"].decode()

    with ThreadPoolExecutor() as pool:
        yield from pool.map(one, source.__getitems__(list(range(len(source)))), chunksize=256)


_NAMES = ("class_name", "name")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress bars and output of TFDS."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
