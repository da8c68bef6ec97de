"""Settings of the image experiments."""

from __future__ import annotations

import dataclasses
from typing import Any

from maml_jax.classification import PROTOCOLS
from maml_jax.classification.episodes import ROTATIONS
from maml_jax.meta_gradient import MODES
from maml_jax.networks.image import POOLINGS
from maml_jax.networks.normalization import NORMS

from .. import invocation
from ..core.config import (
    BATCHING_HELP,
    ConfigError,
    batching_of,
    check_fields,
    flag_of,
    option,
    parse_batching,
    without_swept,
)
from . import data
from .defaults import characters, photographs

METHODS = ("maml", "pretrained", "nearest_neighbour", "random", "matching")
OTHER_DATA = {"synthetic": ", synthetic glyphs", "folder": ", own images"}
# A data set with the paper's numbers has one way of reading its images.
FIXED: dict[str, dict[str, Any]] = {
    "omniglot": {"image_kind": "ink"},
    "mini_imagenet": {"image_kind": "colour", "resample": "lanczos"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run on images.

    A field that is None or empty by default follows from data set, ways and shots (`derived`);
    `config.json` records its value.
    """

    dataset: str = option(
        "synthetic",
        "The images: Omniglot, MiniImagenet, your folder (--data_dir) with a folder for each "
        "class, or synthetic glyphs, to try without data.",
        choices=("omniglot", "mini_imagenet", "folder", "synthetic"),
    )
    methods: tuple[str, ...] = option(("maml",), "Methods to train and compare.", choices=METHODS)
    num_ways: int = option(5, "N, classes of an episode.", minimum=2)
    num_shots: int = option(1, "K, support images of a class.", minimum=1)
    train_queries: int | None = option(
        None, "Query images of a class in training. Default: K for characters, else 15.", minimum=1
    )
    meta_steps: int = option(60_000, "Meta-steps.", minimum=1)
    num_tasks: int | None = option(
        None,
        "Episodes of a meta-batch. Default: 32 for characters (16 from 20 ways on), else 4.",
        minimum=1,
    )
    inner_steps: int | None = option(
        None,
        "Inner gradient steps in meta-training. Default: 1 for characters of fewer than 20 ways, "
        "else 5.",
        minimum=0,
    )
    inner_lr: float | None = option(
        None,
        "Inner step size alpha, for the mean loss; the original code's loss is N times as large. "
        "Default: 2.0 for characters, else 0.05.",
        above=0,
        sweep=True,
    )
    meta_lr: float = option(1e-3, "Step size of the meta-optimizer, Adam.", above=0, sweep=True)
    meta_gradient: str = option(
        "auto",
        "How to differentiate the inner loop. first_order drops second derivatives; the others "
        "give the same results. auto means reverse for one inner step (a tenth faster), mixed for "
        "more (less memory).",
        choices=("auto", *MODES),
    )
    network: str = option(
        "conv", "The network: convolutional, or fully connected.", choices=("conv", "mlp")
    )
    num_filters: int | None = option(
        None, "Filters of each convolution. Default: 64 for characters, else 32.", minimum=1
    )
    image_size: int | None = option(
        None,
        "Height and width of the resized images, pixels. Default: 28 for characters, 84 for "
        "MiniImagenet; for a folder the usual shorter side of its images, from 16 to 84.",
        minimum=8,
    )
    image_kind: str | None = option(
        None,
        "How images are read: in colour, in grey, or as ink on paper (grey; black is 1, white is "
        "0). Default: ink for characters, else colour.",
        choices=tuple(data.KINDS),
    )
    rotations: str | None = option(
        None,
        "Rotations by multiples of 90 degrees: at random for each class of an episode (augment), "
        "or as further classes (classes). Default: augment for characters, else none.",
        choices=ROTATIONS,
    )
    eval_tasks: int = option(600, "Test episodes.", minimum=2)
    protocols: tuple[str, ...] = option(
        ("transductive", "support_statistics"),
        "Images whose batch statistics normalise the queries: all queries (the paper), the "
        "support, or the support and one query at a time (slow).",
        choices=PROTOCOLS,
    )

    task_batching: str = option("auto", BATCHING_HELP, internal=True)
    clip: float | None = option(
        None,
        "Bound of each element of the meta-gradient; 0 means none.",
        minimum=0,
        internal=True,
    )
    num_layers: int = option(4, "Convolutional layers.", minimum=1, maximum=1_000, internal=True)
    pooling: str | None = option(
        None,
        "Convolutions of stride 2 and a final mean, or 2x2 max-pooling.",
        choices=POOLINGS,
        internal=True,
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 128, 64, 64),
        "Layers of the fully connected network.",
        minimum=1,
        repeats=True,
        internal=True,
    )
    norm: str = option(
        "batch",
        "Normalisation; batch has an offset and no scale, as in the original code.",
        choices=NORMS,
        internal=True,
    )
    adapt_norm: bool = option(
        False, "Adapt the parameters of the normalisation in the inner loop.", internal=True
    )
    dtype: str = option(
        "float32",
        "Type of activations; parameters stay float32.",
        choices=("float32", "bfloat16"),
        internal=True,
    )
    data_placement: str = option(
        "auto",
        "Training images: all on every device (replicated), or classes spread over the devices "
        "(sharded; slower, same results). auto: replicated if they fit.",
        choices=("auto", "replicated", "sharded"),
        internal=True,
    )
    resample: str = option(
        "lanczos",
        "How images are resized.",
        choices=("lanczos", "bilinear", "nearest"),
        internal=True,
    )
    split_seed: int = option(0, "Seed of random splits.", minimum=0, internal=True)
    split_fractions: tuple[float, ...] = option(
        (0.64, 0.16, 0.2),
        "Shares of classes for train, val and test, in a folder without folders for splits.",
        minimum=0,
        maximum=1,
        repeats=True,
        internal=True,
    )
    validate_every: int = option(500, "Meta-steps between validations.", minimum=1, internal=True)
    validation_tasks: int = option(
        200, "Validation episodes that select the parameters.", minimum=2, internal=True
    )
    report_steps: int | None = option(
        None,
        "Gradient steps of the paper's numbers and of validation.",
        minimum=0,
        internal=True,
    )
    eval_steps: int = option(10, "Gradient steps of the evaluation.", minimum=0, internal=True)
    eval_queries: tuple[int, ...] = option(
        (),
        "Query images of a class in the test, one or more numbers; 0 means K. Default: as in "
        "training for a folder, else 0,15.",
        minimum=0,
        internal=True,
    )
    pretrain_steps: int = option(
        10_000, "Training steps of the pretrained network.", minimum=1, internal=True
    )
    pretrain_images: int = option(
        128, "Images a step for the pretrained network.", minimum=2, internal=True
    )
    steps_per_call: int | None = option(
        None, "Meta-steps of one dispatch.", minimum=1, internal=True
    )

    def like(self) -> str:
        """The kind of images that selects the defaults: characters or photographs."""
        return "photographs" if self.dataset in ("mini_imagenet", "folder") else "characters"

    def derived(self) -> dict[str, Any]:
        """Values of the fields whose default is None or empty."""
        if self.like() == "photographs":
            values = photographs(self.num_ways, self.num_shots, self.train_queries)
        else:
            values = characters(self.num_ways, self.num_shots)
        values["eval_queries"] = (0, 15)
        if self.dataset == "folder":
            values["eval_queries"] = (values["train_queries"],)
            del values["image_size"]  # read from the images
        return values

    def __post_init__(self):
        for name, value in self.derived().items():
            given = getattr(self, name)
            if given is None or (isinstance(given, tuple) and not given):
                object.__setattr__(self, name, value)
        check_fields(self)
        parse_batching(self.task_batching)
        if type(self) is Config and self.dataset in FIXED:
            raise ConfigError(
                f"--dataset={self.dataset} fixes these settings: {invocation(self.dataset)}."
            )
        if self.eval_steps < self.report_steps:
            raise ConfigError(
                f"--set=eval_steps must be at least report_steps={self.report_steps}; "
                f"received {self.eval_steps}."
            )
        if self.data_placement == "sharded" and self.plain_methods:
            raise ConfigError(
                "--set=data_placement=sharded is for episodes; "
                f"--methods={','.join(self.plain_methods)} trains on plain batches, with all "
                "images on every device."
            )
        for name, value in FIXED.get(self.dataset, {}).items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{flag_of(self, name)} is {value} with --dataset={self.dataset}; "
                    f"received {getattr(self, name)}."
                )
        if self.image_size is None:
            object.__setattr__(self, "image_size", data.size_of_folder())

    @property
    def plain_methods(self) -> list[str]:
        """The methods that train on batches of single images rather than on episodes."""
        return [m for m in ("pretrained", "nearest_neighbour") if m in self.methods]

    @property
    def episode_sizes(self) -> tuple[Any, Any, Any]:
        """N, K and Q of training."""
        return self.num_ways, self.num_shots, self.train_queries

    @property
    def channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for colour."""
        return data.KINDS[self.image_kind][0]

    @property
    def batching(self) -> str | int:
        """How the core batches tasks on a device."""
        return batching_of(self.task_batching)

    @property
    def shared(self) -> Config:
        """The configuration without swept settings: the key of shared data and programs."""
        return without_swept(self)

    @property
    def mode(self) -> str:
        """How the core differentiates the inner loop."""
        if self.meta_gradient != "auto":
            return self.meta_gradient
        return "reverse" if self.inner_steps == 1 else "mixed"

    @property
    def setting(self) -> str:
        """Name in results; marks data that must not be compared with the paper's."""
        return f"{self.num_ways}-way {self.num_shots}-shot{OTHER_DATA.get(self.dataset, '')}"

    @property
    def maml_name(self) -> str:
        """Name of MAML's stage and rows; departures from the paper become part of the name."""
        name = "first_order" if self.mode == "first_order" else "maml"
        return name if self.network == "conv" else f"{name}, not convolutional"
