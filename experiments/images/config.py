"""Settings that every few-shot experiment has, and the network that they describe."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.core.config import (
    BATCHING_HELP,
    ConfigError,
    check_fields,
    option,
    parse_batching,
)
from maml_jax.batching import TASK_AXIS
from maml_jax.classification import PROTOCOLS
from maml_jax.classification.episodes import ROTATIONS
from maml_jax.meta_gradient import EXACT_MODES
from maml_jax.networks import ImageNetwork, convolutional, fully_connected
from maml_jax.networks.convolutions import LOWERINGS
from maml_jax.networks.image import POOLINGS
from maml_jax.networks.normalization import NORMS

METHODS = ("maml", "pretrained", "nearest_neighbour", "random", "matching")
# How the images of a data set are, whatever the flags say; and what results on others are called.
FIXED: dict[str, dict[str, Any]] = {
    "omniglot": {"channels": 1, "invert": True},
    "mini_imagenet": {"channels": 3, "invert": False, "resample": "lanczos"},
}
OTHER_DATA = {"synthetic": ", synthetic glyphs", "folder": ", own images"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that every few-shot experiment has; defaults are those of Omniglot.

    Where the default is None, the value is what the paper has for the chosen ways and shots, and
    `config.json` says what that is.
    """

    dataset: str = option(
        "synthetic",
        "The images: synthetic glyphs, or class folders of your own.",
        choices=("synthetic", "folder"),
    )

    methods: tuple[str, ...] = option(("maml",), "Methods to train and compare.", choices=METHODS)
    num_ways: int = option(5, "N, classes of an episode.", minimum=2)
    num_shots: int = option(1, "K, support images of a class.", minimum=1)
    train_queries: int | None = option(None, "Query images of a class in training.", minimum=1)
    first_order: bool = option(False, "Drop second-order terms of the meta-gradient.")
    meta_steps: int = option(60_000, "Meta-steps.", minimum=1)
    num_tasks: int | None = option(None, "Episodes of a meta-batch.", minimum=1)
    inner_steps: int | None = option(None, "Inner gradient steps in meta-training.", minimum=0)
    inner_lr: float = option(
        2.0, "Inner step size alpha, on the mean loss; the original's is on N times that.", above=0
    )
    meta_lr: float = option(1e-3, "Step size of the meta-optimizer, Adam.", above=0)
    clip: float = option(
        0.0,
        "Bound for each element of the meta-gradient, on the original's scale of the loss, "
        "N * queries / K times the mean; 0 for none.",
        minimum=0,
    )
    network: str = option("conv", "Convolutional, or fully connected.", choices=("conv", "mlp"))
    num_filters: int = option(64, "Filters of each convolution.", minimum=1)
    num_layers: int = option(4, "Convolutional layers.", minimum=1, maximum=1_000)
    pooling: str = option(
        "stride", "Convolutions of stride 2 and a mean, or 2x2 max-pooling.", choices=POOLINGS
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 128, 64, 64), "Layers of the fully connected network.", minimum=1, repeats=True
    )
    norm: str = option(
        "batch", "Normalisation; batch has an offset and no scale, as the original.", choices=NORMS
    )
    adapt_norm: bool = option(False, "Adapt the parameters of normalisation in the inner loop.")
    dtype: str = option(
        "float32", "Of activations; parameters stay float32.", choices=("float32", "bfloat16")
    )
    lowering: str = option(
        "auto", "How convolutions are computed; auto: by platform.", choices=("auto", *LOWERINGS)
    )
    meta_gradient: str = option(
        "auto",
        "How the inner loop is differentiated; does not change results. auto: reverse for one "
        "inner step, where it is a tenth faster, and mixed for more, where it needs less memory.",
        choices=("auto", *EXACT_MODES),
    )
    task_batching: str = option("auto", BATCHING_HELP)
    data_placement: str = option(
        "replicated",
        "Training images whole on every device, or their classes spread over the devices (slower, "
        "for what does not fit). Does not change results.",
        choices=("replicated", "sharded"),
    )
    image_size: int = option(28, "Height and width of images, pixels.", minimum=8)
    channels: int = option(1, "1 for grey images, 3 for colour.", minimum=1, maximum=3)
    invert: bool = option(True, "Whether dark is 1 and white 0 (for ink on paper).")
    resample: str = option(
        "lanczos", "How images are resized.", choices=("lanczos", "bilinear", "nearest")
    )
    split_seed: int = option(0, "Seed of splits that are drawn at random.", minimum=0)
    split_fractions: tuple[float, ...] = option(
        (0.64, 0.16, 0.2),
        "Shares of classes for train, val and test, of --dataset=folder without such folders.",
        minimum=0,
        maximum=1,
        repeats=True,
    )
    rotations: str = option(
        "augment",
        "Turns by multiples of 90 degrees: each class of an episode at random, or as new classes.",
        choices=ROTATIONS,
    )
    validate_every: int = option(500, "Meta-steps between validations.", minimum=1)
    validation_tasks: int = option(200, "Validation episodes, to choose the model by.", minimum=2)
    report_steps: int | None = option(
        None, "Gradient steps that the paper reports, and that the model is chosen by.", minimum=0
    )
    eval_steps: int = option(10, "Gradient steps of the evaluation.", minimum=0)
    eval_tasks: int = option(600, "Test episodes.", minimum=2)
    eval_queries: tuple[int, ...] = option(
        (0, 15), "Query images of a class in the evaluation, each a row; 0: K.", minimum=0
    )
    protocols: tuple[str, ...] = option(
        ("transductive", "support_statistics"),
        "Batch statistics of query images: all queries together (the paper), the support's, or "
        "the support's with each query alone (slow).",
        choices=PROTOCOLS,
    )
    pretrain_steps: int = option(10_000, "Training steps of the pretrained network.", minimum=1)
    pretrain_images: int = option(128, "Images a step for the pretrained network.", minimum=2)
    steps_per_call: int = option(100, "Meta-steps of one dispatch.", minimum=1)

    def defaults(self) -> dict[str, Any]:
        """The paper's values for the chosen ways and shots, for fields that are None."""
        many = self.num_ways >= 20
        return {
            "train_queries": self.num_shots,
            "num_tasks": 16 if many else 32,
            "inner_steps": 5 if many else 1,
            "report_steps": 5 if many else 3,
        }

    def __post_init__(self):
        for name, value in self.defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_fields(self)
        parse_batching(self.task_batching)
        if self.eval_steps < self.report_steps:
            raise ConfigError(
                f"--eval_steps must be at least --report_steps={self.report_steps}; "
                f"received {self.eval_steps}."
            )
        alone = [m for m in ("pretrained", "nearest_neighbour") if m in self.methods]
        if self.data_placement == "sharded" and alone:
            raise ConfigError(
                f"--data_placement=sharded is for episodes; --methods={','.join(alone)} trains on "
                "plain batches, with all images on every device."
            )
        if self.channels == 2:
            raise ConfigError("--channels must be 1 or 3; received 2.")
        for name, value in FIXED.get(self.dataset, {}).items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"--{name} is {value} with --dataset={self.dataset}; "
                    f"received {getattr(self, name)}."
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        return self.image_size, self.image_size, self.channels

    @property
    def batching(self) -> str | int:
        """How the core batches tasks on a device."""
        if self.task_batching != "auto":
            return parse_batching(self.task_batching)
        return "scan" if jax.default_backend() == "cpu" else "vmap"

    @property
    def class_axis(self) -> str | None:
        """The mesh axis that classes of training images are spread over, if they are."""
        return TASK_AXIS if self.data_placement == "sharded" else None

    @property
    def shared(self) -> Config:
        """These settings at fixed step sizes: the key of data and programs that are for all."""
        return dataclasses.replace(self, inner_lr=1.0, meta_lr=1.0)

    @property
    def mode(self) -> str:
        """How the core differentiates the inner loop."""
        if self.first_order:
            return "first_order"
        if self.meta_gradient != "auto":
            return self.meta_gradient
        return "reverse" if self.inner_steps == 1 else "mixed"

    @property
    def setting(self) -> str:
        """As results name it; other data than the paper's is named, and its numbers kept away."""
        return f"{self.num_ways}-way {self.num_shots}-shot{OTHER_DATA.get(self.dataset, '')}"

    @property
    def maml_name(self) -> str:
        """Name of the meta-learned method in stages and results."""
        name = "first_order" if self.first_order else "maml"
        return name if self.network == "conv" else f"{name}, not convolutional"


def make_network(config: Config, num_outputs: int | None = None) -> ImageNetwork:
    """The classifier, by default with N outputs."""
    outputs = config.num_ways if num_outputs is None else num_outputs
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    shared: Any = {"norm": config.norm, "adapt_norm": config.adapt_norm, "dtype": dtype}
    try:
        if config.network == "mlp":
            return fully_connected(config.image_shape, outputs, config.hidden_sizes, **shared)
        return convolutional(
            config.image_shape,
            outputs,
            num_filters=config.num_filters,
            num_layers=config.num_layers,
            pooling=config.pooling,
            lowering=None if config.lowering == "auto" else config.lowering,
            **shared,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
