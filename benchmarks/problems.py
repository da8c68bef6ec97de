"""The problems that several suites train, and what every suite makes of one: tasks, programs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax import MetaState, Problem, Task, gradient_update, init, make_train_fn
from maml_jax.algorithms import maml
from maml_jax.batching import Batching
from maml_jax.classification import ImageSet, classification_problem
from maml_jax.mesh import replicate
from maml_jax.networks import ImageNetwork, convolutional, fully_connected, mlp
from maml_jax.regression import sinusoid_problem
from maml_jax.task_gradients import sum_gradient
from maml_jax.training import TrainFn
from maml_jax.types import Params, TaskLoss

OPTIMIZER = optax.adam(1e-3)


class Setup(NamedTuple):
    """A problem, how it is learned, and what its tasks are drawn from.

    Attributes:
        problem: its `init` and `sample` are used.
        loss: the meta-loss of one task.
        num_tasks: T of a meta-batch.
        data: arrays that `sample` draws from.
        batching: tasks at once on a device.
        steps_per_draw: meta-steps that tasks are drawn for at a time.
    """

    problem: Problem
    loss: TaskLoss
    num_tasks: int
    data: tuple[Any, ...] = ()
    batching: Batching = None
    steps_per_draw: int = 1


class Program(NamedTuple):
    """Compiled meta-training and its arguments.

    Attributes:
        train: `train(state, *data) -> (state, metrics)`.
        state: to begin with.
        data: on the devices.
    """

    train: TrainFn
    state: MetaState
    data: tuple[Any, ...]

    def step(self, state: MetaState) -> tuple[MetaState, Any]:
        """One dispatch, `state -> (state, metrics)`."""
        return self.train(state, *self.data)


def make_program(setup: Setup, num_meta_steps: int) -> Program:
    """Meta-steps in one dispatch with tasks drawn inside it, as the experiments compile them."""
    update = gradient_update(setup.loss, OPTIMIZER, batching=setup.batching)
    train = make_train_fn(
        setup.problem.sample,
        update,
        num_tasks=setup.num_tasks,
        num_meta_steps=num_meta_steps,
        steps_per_draw=setup.steps_per_draw,
    )
    return Program(train, init(make_params(setup), update, 0), replicate(setup.data, train.mesh))


def make_params(setup: Setup) -> Params:
    """Initial meta-parameters."""
    return jax.jit(setup.problem.init)(jax.random.key(0))


def draw_tasks(setup: Setup, num_tasks: int | None = None) -> Task:
    """A meta-batch, always the same."""
    keys = jax.random.split(jax.random.key(1), num_tasks or setup.num_tasks)
    sample = lambda data: jax.vmap(lambda key: setup.problem.sample(None, key, *data))(keys)
    return jax.jit(sample)(setup.data)


def shapes_of(setup: Setup) -> tuple[Params, Task]:
    """Shapes of the meta-parameters and of one task."""
    key = jax.random.key(0)
    sample = lambda key: setup.problem.sample(None, key, *setup.data)
    return jax.eval_shape(setup.problem.init, key), jax.eval_shape(sample, key)


def meta_gradient(setup: Setup) -> Any:
    """`(params, tasks) -> TaskGradients`: losses, and the gradient of their sum."""
    return lambda params, tasks: sum_gradient(setup.loss, params, tasks, setup.batching)


def gradient_jaxpr(setup: Setup) -> Any:
    """Of one task's meta-gradient."""
    return jax.make_jaxpr(jax.grad(setup.loss, has_aux=True))(*shapes_of(setup)).jaxpr


NUM_TASKS, SHOTS, INNER_LR = 25, 10, 0.001


def sinusoid(
    mode: str = "mixed",
    num_inner_steps: int = 1,
    *,
    inner_lr: float = INNER_LR,
    num_tasks: int = NUM_TASKS,
    batching: Batching = None,
) -> Setup:
    """The paper's sinusoid as the experiment trains it, network 1-40-40-1."""
    problem = sinusoid_problem(mlp(1, 1), SHOTS, SHOTS)
    loss = maml(problem, inner_lr, num_inner_steps, mode=mode).loss
    return Setup(problem, loss, num_tasks, batching=batching, steps_per_draw=50)


class ImageCase(NamedTuple):
    """A cell of the paper's Table 1, as it is trained.

    Attributes:
        name: of the cell.
        ways: N.
        shots: K.
        queries: query images of a class.
        tasks: of a meta-batch.
        steps: inner steps.
        data: "omniglot", "omniglot, not convolutional" or "mini_imagenet": shapes and network.
        rate: inner step size, if it is not the experiment's.
    """

    name: str
    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int
    data: str = "omniglot"
    rate: float | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        return (84, 84, 3) if self.data == "mini_imagenet" else (28, 28, 1)

    @property
    def mode(self) -> str:
        """Of the meta-gradient, as the experiments choose it."""
        return "reverse" if self.steps == 1 else "mixed"

    @property
    def inner_lr(self) -> float:
        """On the mean loss."""
        if self.rate is not None:
            return self.rate
        return 0.05 if self.data == "mini_imagenet" else 2.0

    def network(self, **options: Any) -> ImageNetwork:
        """The paper's network for this data."""
        if self.data == "omniglot, not convolutional":
            return fully_connected(self.image_shape, self.ways, **options)
        if self.data == "mini_imagenet":
            options = {"num_filters": 32, "pooling": "max", **options}
        return convolutional(self.image_shape, self.ways, **options)


OMNIGLOT_5 = ImageCase("Omniglot 5-way 1-shot", 5, 1, 1, 32, 1)
OMNIGLOT_20 = ImageCase("Omniglot 20-way 1-shot, 5 steps", 20, 1, 1, 16, 5)
OMNIGLOT_15 = ImageCase("Omniglot 5-way 1-shot, 15 queries", 5, 1, 15, 32, 1)
OMNIGLOT_5_SHOT = ImageCase("Omniglot 5-way 5-shot", 5, 5, 5, 32, 1)
MLP = ImageCase(
    "Omniglot 5-way 1-shot, fully connected", 5, 1, 1, 32, 1, "omniglot, not convolutional"
)
MINI = ImageCase("MiniImagenet 5-way 1-shot, 5 steps", 5, 1, 15, 4, 5, "mini_imagenet")
MINI_5_SHOT = ImageCase("MiniImagenet 5-way 5-shot, 5 steps", 5, 5, 15, 4, 5, "mini_imagenet")


def images(
    case: ImageCase, mode: str | None = None, *, batching: Batching = "scan", **network: Any
) -> Setup:
    """A case on random pixels: how long a meta-step takes does not depend on what is drawn.

    Args:
        case: the cell.
        mode: of the meta-gradient; default the case's.
        batching: tasks at once.
        **network: options of its network.
    """
    made = case.network(**network)
    problem = classification_problem(made, case.ways, case.shots, case.queries, "augment")
    loss = maml(problem, case.inner_lr, case.steps, mask=made.mask, mode=mode or case.mode).loss
    return Setup(problem, loss, case.tasks, (_random_images(case),), batching)


def _random_images(case: ImageCase, num_classes: int = 64) -> ImageSet:
    rng = np.random.Generator(np.random.PCG64(0))
    shape = (num_classes, case.shots + case.queries, *case.image_shape)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    return ImageSet(jnp.asarray(pixels), jnp.full(num_classes, shape[1], jnp.int32))
