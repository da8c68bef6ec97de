"""Problems that several suites train, and the tasks and programs made from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Row, measure_loop
from benchmarks.programs import sum_products
from maml_jax import MetaState, Problem, Task, gradient_update, init, make_train_fn
from maml_jax.algorithms import maml
from maml_jax.batching import Batching
from maml_jax.classification import ImageSet, classification_problem
from maml_jax.mesh import replicate
from maml_jax.networks import ImageNetwork, convolutional, fully_connected, mlp
from maml_jax.regression import sinusoid_problem
from maml_jax.task_gradients import TaskGradients, sum_gradient
from maml_jax.training import TrainFn
from maml_jax.types import Params, TaskLoss, is_float

OPTIMIZER = optax.adam(1e-3)


class Program(NamedTuple):
    """Compiled meta-steps that draw their tasks, as in the experiments.

    Attributes:
        train: `train(state, *data) -> (state, metrics)`, one dispatch.
        state: initial state.
        data: arguments of `train`, on the devices.
    """

    train: TrainFn
    state: MetaState
    data: tuple[Any, ...]

    def step(self, state: MetaState) -> tuple[MetaState, Any]:
        """Runs one dispatch."""
        return self.train(state, *self.data)

    def compile(self) -> Any:
        """Returns the compiled program, for its text and its memory analysis."""
        return self.train.lower(self.state, *self.data).compile()

    def measure(self, name: str, calls: int) -> Row:
        """Times a meta-step over `calls` dispatches."""
        return measure_loop(name, self.step, self.state, calls, self.train.num_meta_steps)


class Setup(NamedTuple):
    """A problem, its meta-loss, and its data.

    Attributes:
        problem: source of `init` and `sample`.
        loss: meta-loss of one task.
        num_tasks: T of a meta-batch.
        data: arrays from which `sample` draws.
        batching: tasks computed at once on a device.
        steps_per_draw: meta-steps whose tasks are drawn together.
    """

    problem: Problem
    loss: TaskLoss
    num_tasks: int
    data: tuple[Any, ...] = ()
    batching: Batching = None
    steps_per_draw: int = 1

    def program(self, num_meta_steps: int) -> Program:
        """Makes the program that meta-trains with Adam.

        Args:
            num_meta_steps: meta-steps in a dispatch.
        """
        update = gradient_update(self.loss, OPTIMIZER, batching=self.batching)
        train = make_train_fn(
            self.problem.sample,
            update,
            num_tasks=self.num_tasks,
            num_meta_steps=num_meta_steps,
            steps_per_draw=self.steps_per_draw,
        )
        return Program(train, init(self.params(), update, 0), replicate(self.data, train.mesh))

    def params(self) -> Params:
        """Returns the initial meta-parameters."""
        return jax.jit(self.problem.init)(jax.random.key(0))

    def tasks(self, num_tasks: int | None = None) -> Task:
        """Draws a meta-batch, the same in each call.

        Args:
            num_tasks: T; default that of the setup.
        """
        keys = jax.random.split(jax.random.key(1), num_tasks or self.num_tasks)
        sample = lambda data: jax.vmap(lambda key: self.problem.sample(None, key, *data))(keys)
        return jax.jit(sample)(self.data)

    def shapes(self) -> tuple[Params, Task]:
        """Returns the shapes of the meta-parameters and of one task."""
        sample = lambda key: self.problem.sample(None, key, *self.data)
        return tuple(jax.eval_shape(fn, jax.random.key(0)) for fn in (self.problem.init, sample))

    def gradient(self, params: Params, tasks: Task) -> TaskGradients:
        """Returns the tasks' losses and the gradient of their sum."""
        return sum_gradient(self.loss, params, tasks, self.batching)

    def work(self) -> tuple[float, float]:
        """Counts a meta-step's matrix products: operations, and bytes of operands and results."""
        jaxpr = jax.make_jaxpr(jax.grad(self.loss, has_aux=True))(*self.shapes()).jaxpr
        return sum_products(jaxpr, self.num_tasks)


def cast_floats(tree: Any, dtype: Any) -> Any:
    """Converts the floating-point leaves of a pytree to `dtype`."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if is_float(x) else x, tree)


NUM_TASKS, SHOTS, INNER_LR = 25, 10, 0.001


def sinusoid(
    mode: str = "mixed",
    num_inner_steps: int = 1,
    *,
    inner_lr: float = INNER_LR,
    num_tasks: int = NUM_TASKS,
    batching: Batching = None,
) -> Setup:
    """Makes the paper's sinusoid problem, with network 1-40-40-1, as in the experiment.

    Args:
        mode: of the meta-gradient.
        num_inner_steps: S.
        inner_lr: alpha.
        num_tasks: T of a meta-batch.
        batching: tasks computed at once.
    """
    problem = sinusoid_problem(mlp(1, 1), SHOTS, SHOTS)
    loss = maml(problem, inner_lr, num_inner_steps, mode=mode).loss
    return Setup(problem, loss, num_tasks, batching=batching, steps_per_draw=50)


class ImageCase(NamedTuple):
    """Training settings of a cell of the paper's Table 1.

    Attributes:
        name: of the cell.
        ways: N.
        shots: K.
        queries: Q, query images of a class.
        tasks: T of a meta-batch.
        steps: S, inner steps.
        data: "omniglot", "omniglot, not convolutional" or "mini_imagenet"; determines the image
            shape and the network.
        rate: inner learning rate; None for the experiment's.
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
        """Height, width and channels."""
        return (84, 84, 3) if self.data == "mini_imagenet" else (28, 28, 1)

    @property
    def mode(self) -> str:
        """The experiments' choice of meta-gradient mode."""
        return "reverse" if self.steps == 1 else "mixed"

    @property
    def inner_lr(self) -> float:
        """Inner learning rate on the mean loss."""
        if self.rate is not None:
            return self.rate
        return 0.05 if self.data == "mini_imagenet" else 2.0

    def network(self, **options: Any) -> ImageNetwork:
        """Returns the paper's network for this data."""
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
    """Makes an image problem on random pixels, which take as much time as real images.

    Args:
        case: training settings.
        mode: of the meta-gradient; default the case's.
        batching: tasks computed at once.
        **network: options of the network.
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
