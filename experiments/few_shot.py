"""Few-shot image classification: what the experiments on Omniglot and MiniImagenet share.

A run trains the methods that it is asked for, keeps of each the parameters that do best on
validation episodes, and judges those on test episodes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import ConfigError, check_fields, option
from experiments.results import make_row
from experiments.runner import Outcome, Stage
from maml_jax import MetaState, adapt, init, make_evaluate_fn, make_train_fn, meta_loss, task_mesh
from maml_jax.batching import map_tasks, replicate
from maml_jax.classification import (
    PROTOCOLS,
    ImageSet,
    baselines,
    classification_problem,
    cross_entropy,
    draw_episodes,
    episode_sampler,
    judge,
    judged,
)
from maml_jax.classification.episodes import ROTATIONS
from maml_jax.meta_gradient import EXACT_MODES
from maml_jax.networks import ImageNetwork, convolutional, fully_connected
from maml_jax.networks.convolutions import LOWERINGS
from maml_jax.networks.image import POOLINGS
from maml_jax.networks.normalization import NORMS
from maml_jax.types import Array, Params, Task

METHODS = ("maml", "pretrained", "nearest_neighbour", "random", "matching")
TEST_SEED, VALIDATION_SEED, TUNING_SEED = 1_000_001, 1_000_002, 1_000_003  # of no training run
TUNING_RATES = tuple(float(r) for r in np.logspace(-3, 1, 9))  # for fine-tuning baselines
PROTOCOL_NOTES = {
    "transductive": "",
    "support_statistics": ", support statistics",
    "one_query": ", one query at a time",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that every few-shot experiment has; defaults are those of Omniglot.

    Where the default is None, the value is what the paper has for the chosen ways and shots, and
    `config.json` says what that is.
    """

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
    num_layers: int = option(4, "Convolutional layers.", minimum=1)
    pooling: str = option(
        "stride", "Convolutions of stride 2 and a mean, or 2x2 max-pooling.", choices=POOLINGS
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 128, 64, 64), "Layers of the fully connected network.", minimum=1
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
        "mixed",
        "How the inner loop is differentiated; does not change results.",
        choices=EXACT_MODES,
    )
    task_batching: str = option(
        "auto",
        "Tasks of a device one after the other or as one batch; auto: scan on a CPU, else vmap.",
        choices=("auto", "scan", "vmap"),
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
        PROTOCOLS,
        "Batch statistics of query images: all queries together (the paper), the support's, or "
        "the support's with each query alone.",
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
        if self.eval_steps < self.report_steps:
            raise ConfigError(
                f"--eval_steps must be at least --report_steps={self.report_steps}; "
                f"received {self.eval_steps}."
            )
        if self.channels == 2:
            raise ConfigError("--channels must be 1 or 3; received 2.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        return self.image_size, self.image_size, self.channels

    @property
    def batching(self) -> str:
        """How the core batches tasks on a device."""
        if self.task_batching != "auto":
            return self.task_batching
        return "scan" if jax.default_backend() == "cpu" else "vmap"

    @property
    def setting(self) -> str:
        """As results name it."""
        return f"{self.num_ways}-way {self.num_shots}-shot"

    @property
    def maml_name(self) -> str:
        """Name of the meta-learned method in stages and results."""
        name = "first_order" if self.first_order else "maml"
        return name if self.network == "conv" else f"{name}, not convolutional"


class Images(NamedTuple):
    """The image sets of a run, on its devices."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


class Selection(NamedTuple):
    """A training state with the parameters that did best on validation episodes so far.

    Attributes:
        train: the state of training.
        best_params: the chosen parameters.
        best_accuracy: theirs, on validation episodes; -1 before the first validation.
        best_step: when they were reached.
    """

    train: MetaState
    best_params: Params
    best_accuracy: Array
    best_step: Array

    @property
    def params(self) -> Params:
        """The parameters that are being trained."""
        return self.train.params


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


def make_stages(config: Config, seed: int, images: Images) -> list[Stage]:
    """One stage for each method that is trained."""
    stages = []
    if "maml" in config.methods:
        stages.append(_maml_stage(config, seed, images))
    if "pretrained" in config.methods or "nearest_neighbour" in config.methods:
        stages.append(_pretraining_stage(config, seed, images))
    if "matching" in config.methods:
        stages.append(_matching_stage(config, seed, images))
    return stages


def _optimizer(config: Config) -> optax.GradientTransformation:
    if config.clip == 0:
        return optax.adam(config.meta_lr)
    scale = config.num_ways * config.train_queries / config.num_shots
    return optax.chain(optax.clip(config.clip / scale), optax.adam(config.meta_lr))


def _maml_stage(config: Config, seed: int, images: Images) -> Stage:
    network = make_network(config)
    problem = classification_problem(
        network, config.num_ways, config.num_shots, config.train_queries, config.rotations
    )
    task_loss = functools.partial(
        meta_loss,
        problem.inner_loss,
        inner_lr=config.inner_lr,
        num_steps=config.inner_steps,
        mask=network.mask,
        mode="first_order" if config.first_order else config.meta_gradient,
    )
    evaluate = make_evaluate_fn(
        problem.inner_loss, config.report_steps, mask=network.mask, batching=config.batching
    )

    def score(params: Params, episodes: Task) -> Array:
        return evaluate(params, episodes, config.inner_lr).mean["accuracy"][-1]

    return _stage(
        config,
        seed,
        images,
        name=config.maml_name,
        network=network,
        sample=problem.sample,
        task_loss=task_loss,
        num_tasks=config.num_tasks,
        num_steps=config.meta_steps,
        score=score,
    )


def _matching_stage(config: Config, seed: int, images: Images) -> Stage:
    network = make_network(config)
    return _stage(
        config,
        seed,
        images,
        name="matching",
        network=network,
        sample=episode_sampler(
            config.num_ways, config.num_shots, config.train_queries, config.rotations
        ),
        task_loss=baselines.matching_loss(network.apply, config.num_ways),
        num_tasks=config.num_tasks,
        num_steps=config.meta_steps,
        score=_mean_over_tasks(config, _matching_accuracy(config, network, "transductive")),
    )


def _pretraining_stage(config: Config, seed: int, images: Images) -> Stage:
    network = _pretrained_network(config, images)
    rotations = "classes" if config.rotations != "none" else "none"
    neighbours = functools.partial(
        baselines.nearest_neighbour_accuracy, network.apply, "transductive"
    )
    return _stage(
        config,
        seed,
        images,
        name="pretrained",
        network=network,
        sample=baselines.class_batches(config.pretrain_images, rotations),
        task_loss=baselines.pretraining_loss(network.apply),
        num_tasks=1,
        num_steps=config.pretrain_steps,
        score=_mean_over_tasks(config, neighbours),
    )


def _pretrained_network(config: Config, images: Images) -> ImageNetwork:
    """A network that tells all training classes apart, turned ones included."""
    turns = 4 if config.rotations != "none" else 1
    return make_network(config, turns * images.train.images.shape[0])


def _mean_over_tasks(
    config: Config, accuracy: Callable[[Params, Task], Array]
) -> Callable[[Params, Task], Array]:
    """The mean accuracy over episodes, compiled."""

    @jax.jit
    def score(params: Params, episodes: Task) -> Array:
        return jnp.mean(map_tasks(lambda task: accuracy(params, task), episodes, config.batching))

    return score


def _matching_accuracy(
    config: Config, network: ImageNetwork, protocol: str
) -> Callable[[Params, Task], Array]:
    loss = baselines.matching_loss(network.apply, config.num_ways, protocol)
    return lambda params, task: loss(params, task)[1]["query"]["accuracy"]


def _stage(
    config: Config,
    seed: int,
    images: Images,
    *,
    name: str,
    network: ImageNetwork,
    sample: Callable[..., Task],
    task_loss: Callable[..., Any],
    num_tasks: int,
    num_steps: int,
    score: Callable[[Params, Task], Array],
) -> Stage:
    """A stage that trains, and validates now and then."""
    optimizer = optax.adam(config.meta_lr) if name == "pretrained" else _optimizer(config)
    mesh = task_mesh(num_tasks)

    def start() -> Selection:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        state = init(jax.jit(network.init)(init_key), optimizer, train_key)
        best = jax.tree.map(jnp.copy, state.params)
        return Selection(state, best, jnp.float32(-1), jnp.int32(0))

    @functools.cache
    def placed() -> tuple[ImageSet, Task | None]:
        """Training images on every device, and validation episodes."""
        return replicate(images.train, mesh), validation_episodes(config, images)

    def make_advance(count: int) -> Callable[[Selection], tuple[Selection, Any]]:
        train = make_train_fn(
            sample,
            task_loss,
            optimizer,
            num_tasks=num_tasks,
            num_steps=count,
            batching=config.batching,
            mesh=mesh,
        )

        def advance(selection: Selection) -> tuple[Selection, Any]:
            train_set, episodes = placed()
            state, metrics = train(selection.train, train_set)
            selection = selection._replace(train=state)
            at = int(state.step)
            due = at // config.validate_every > (at - count) // config.validate_every
            if not (due or at == num_steps):
                return selection, metrics
            if episodes is None:  # no validation classes: the last parameters are taken
                return _choose(selection, jnp.float32(-1)), metrics
            accuracy = score(state.params, episodes)
            if accuracy > selection.best_accuracy:
                selection = _choose(selection, accuracy)
            best = jnp.full((count,), selection.best_accuracy)
            shown = {"accuracy": jnp.full((count,), accuracy), "best_accuracy": best}
            return selection, {**metrics, "validation": shown}

        return advance

    return Stage(
        name=name,
        num_steps=num_steps,
        steps_per_call=config.steps_per_call,
        init=start,
        make_advance=make_advance,
        shown=("loss", "query/accuracy"),
    )


def _choose(selection: Selection, accuracy: Array) -> Selection:
    """The parameters as they are now become the chosen ones; a copy, because training donates."""
    return selection._replace(
        best_params=jax.tree.map(jnp.copy, selection.params),
        best_accuracy=jnp.float32(accuracy),
        best_step=jnp.copy(selection.train.step),
    )


def validation_episodes(
    config: Config, images: Images, seed: int = VALIDATION_SEED, num_tasks: int | None = None
) -> Task | None:
    """Episodes of the validation classes with K queries; None if there are no such classes."""
    if images.validation is None:
        return None
    sampler = episode_sampler(config.num_ways, config.num_shots, config.num_shots, config.rotations)
    draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
    count = config.validation_tasks if num_tasks is None else num_tasks
    return draw(jax.random.key(seed), images.validation, count)


def evaluate(config: Config, seed: int, images: Images, states: Mapping[str, Selection]) -> Outcome:
    """Accuracy of each method on the same test episodes, in every protocol asked for."""
    judges = _judges(config, seed, images, states)
    rows, arrays = [], {}
    for queries in dict.fromkeys(q or config.num_shots for q in config.eval_queries):
        sampler = episode_sampler(config.num_ways, config.num_shots, queries, config.rotations)
        draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
        tasks = draw(jax.random.key(TEST_SEED), images.test, config.eval_tasks)
        for protocol in config.protocols:
            note = "" if queries == config.num_shots else f", {queries} queries"
            setting = config.setting + note + PROTOCOL_NOTES[protocol]
            for name, accuracies in judges.items():
                found, extra = accuracies(tasks, protocol)
                for step, values in found.items():
                    rows.append({**make_row(name, setting, step, "accuracy", values), **extra})
                arrays[f"accuracy/{name}/{setting}"] = np.stack(list(found.values()))
            if "episode/support" not in arrays and config.maml_name in states:
                arrays |= _episode(config, states[config.maml_name].best_params, tasks)
    for name, selection in states.items():
        arrays[f"best_step/{name}"] = np.asarray(selection.best_step)
    return Outcome(rows, arrays)


def _episode(config: Config, params: Params, tasks: Task) -> dict[str, np.ndarray]:
    """The first test episode and what the adapted model says, for the figure."""
    network = make_network(config)
    support, query = jax.tree.map(lambda x: x[0], tasks)

    @jax.jit
    def answer(params: Params) -> Array:
        adapted, _ = adapt(
            cross_entropy(network.apply),
            params,
            support,
            config.inner_lr,
            config.report_steps,
            mask=network.mask,
        )
        return jax.nn.softmax(network.apply(adapted, query.images))

    def pixels(images: Array) -> np.ndarray:
        return np.rint(np.asarray(images) * 255).astype(np.uint8)

    return {
        "episode/support": pixels(support.images),
        "episode/support_labels": np.asarray(support.labels),
        "episode/query": pixels(query.images),
        "episode/query_labels": np.asarray(query.labels),
        "episode/probabilities": np.asarray(answer(params)),
    }


Judge = Callable[[Task, str], tuple[dict[int | None, np.ndarray], dict[str, Any]]]


def _judges(
    config: Config, seed: int, images: Images, states: Mapping[str, Selection]
) -> dict[str, Judge]:
    """For each method a function of test tasks and protocol to accuracies [T] by gradient step."""
    judges: dict[str, Judge] = {}
    network = make_network(config)
    if config.maml_name in states:
        params = states[config.maml_name].best_params
        judges[config.maml_name] = _adapting(config, network, params, config.inner_lr)
    if "pretrained" in states:
        trunk = states["pretrained"].best_params
        wide = _pretrained_network(config, images)
        if "pretrained" in config.methods:
            fresh = jax.jit(network.init)(jax.random.key(seed))
            started = baselines.with_new_head(trunk, fresh)
            judges["fine-tuning"] = _fine_tuning(config, images, network, started)
        if "nearest_neighbour" in config.methods:
            judges["nearest neighbour"] = _not_adapting(
                config,
                trunk,
                functools.partial(baselines.nearest_neighbour_accuracy, wide.apply),
            )
    if "random" in config.methods:
        untrained = jax.jit(network.init)(jax.random.key(seed))
        judges["random"] = _fine_tuning(config, images, network, untrained)
    if "matching" in states:
        judges["matching nets"] = _not_adapting(
            config,
            states["matching"].best_params,
            lambda protocol, p, task: _matching_accuracy(config, network, protocol)(p, task),
        )
    return judges


def _adapting(config: Config, network: ImageNetwork, params: Params, rate: float) -> Judge:
    """Judges a method that takes gradient steps on the support set."""

    @functools.cache
    def evaluate_fn(protocol: str) -> Any:
        return make_evaluate_fn(
            cross_entropy(network.apply),
            config.eval_steps,
            outer_loss=judge(network.apply, protocol),
            mask=network.mask,
            batching=config.batching,
        )

    def accuracies(tasks: Task, protocol: str) -> Any:
        found = evaluate_fn(protocol)(params, judged(tasks), rate).per_task["accuracy"]
        by_step = {step: np.asarray(found[:, step]) for step in range(config.eval_steps + 1)}
        return by_step, {"inner_lr": rate}

    return accuracies


def _fine_tuning(config: Config, images: Images, network: ImageNetwork, params: Params) -> Judge:
    """Judges fine-tuning with the step size that does best on validation episodes."""
    episodes = validation_episodes(config, images, TUNING_SEED, num_tasks=100)
    if episodes is None:
        raise ConfigError(
            "the fine-tuning baselines need validation classes for their step size; "
            "this splitting has none."
        )
    loss_fn = cross_entropy(network.apply)
    evaluate_fn = make_evaluate_fn(
        loss_fn, config.eval_steps, mask=network.mask, batching=config.batching
    )
    curves = [evaluate_fn(params, episodes, r).mean["accuracy"] for r in TUNING_RATES]
    best = int(np.argmax([np.mean(curve[1:]) for curve in curves]))
    return _adapting(config, network, params, TUNING_RATES[best])


def _not_adapting(
    config: Config, params: Params, accuracy: Callable[[str, Params, Task], Array]
) -> Judge:
    """Judges a method that takes no gradient steps."""

    @functools.cache
    def compiled(protocol: str) -> Any:
        def every(p: Params, tasks: Task) -> Array:
            return map_tasks(lambda task: accuracy(protocol, p, task), tasks, config.batching)

        return jax.jit(every)

    return lambda tasks, protocol: ({None: np.asarray(compiled(protocol)(params, tasks))}, {})
