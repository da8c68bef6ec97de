"""Meta-steps of the paper's image classifiers, and how far they are from the machine's arithmetic.

On a CPU each core is one JAX device with one thread, as the experiments run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import bounds
from benchmarks.harness import in_fresh_process, measure_loop, resident_mb
from maml_jax import MODES, MetaState, init, make_train_fn, memory_report, meta_loss, task_mesh
from maml_jax.batching import replicate
from maml_jax.classification import ImageSet, classification_problem, draw_episodes
from maml_jax.networks import ImageNetwork, convolutional, fully_connected

OPTIMIZER = optax.adam(1e-3)


class Case(NamedTuple):
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


OMNIGLOT_5 = Case("Omniglot 5-way 1-shot", 5, 1, 1, 32, 1)
OMNIGLOT_20 = Case("Omniglot 20-way 1-shot, 5 steps", 20, 1, 1, 16, 5)
OMNIGLOT_15 = Case("Omniglot 5-way 1-shot, 15 queries", 5, 1, 15, 32, 1)
CASES = (
    OMNIGLOT_5,
    OMNIGLOT_20,
    OMNIGLOT_15,
    Case("Omniglot 5-way 5-shot", 5, 5, 5, 32, 1),
    Case("Omniglot 5-way 1-shot, fully connected", 5, 1, 1, 32, 1, "omniglot, not convolutional"),
    Case("MiniImagenet 5-way 1-shot, 5 steps", 5, 1, 15, 4, 5, "mini_imagenet"),
)
MINI_5_SHOT = Case("MiniImagenet 5-way 5-shot, 5 steps", 5, 5, 15, 4, 5, "mini_imagenet")


def synthetic_images(case: Case, num_classes: int = 64) -> ImageSet:
    """Random pixels: how long a meta-step takes does not depend on what is drawn."""
    rng = np.random.Generator(np.random.PCG64(0))
    shape = (num_classes, case.shots + case.queries, *case.image_shape)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return ImageSet(jnp.asarray(images), jnp.full(num_classes, shape[1], jnp.int32))


def task_loss(case: Case, network: ImageNetwork, mode: str = "mixed") -> Any:
    """The meta-loss of one task."""
    problem = classification_problem(network, case.ways, case.shots, case.queries)
    return functools.partial(
        meta_loss,
        problem.inner_loss,
        inner_lr=case.inner_lr,
        num_steps=case.steps,
        mask=network.mask,
        mode=mode,
    )


def trainer(case: Case, num_steps: int, **options: Any) -> tuple[Any, MetaState]:
    """`(step, state)`: a number of meta-steps with episodes drawn inside, as experiments do it.

    Options: as of `train_program`.
    """
    train, state, images = train_program(case, num_steps, **options)
    return lambda s: train(s, images), state


def train_program(case: Case, num_steps: int, **options: Any) -> tuple[Any, MetaState, ImageSet]:
    """`(train, state, images)`, where `train(state, images)` is a number of meta-steps.

    Options: `mode`, `batching`, and those of the network.
    """
    mode, batching = options.pop("mode", case.mode), options.pop("batching", "scan")
    network = case.network(**options)
    problem = classification_problem(network, case.ways, case.shots, case.queries, "augment")
    train = make_train_fn(
        problem.sample,
        task_loss(case, network, mode),
        OPTIMIZER,
        num_tasks=case.tasks,
        num_steps=num_steps,
        batching=batching,
    )
    images = replicate(synthetic_images(case), task_mesh(case.tasks))
    state = init(jax.jit(network.init)(jax.random.key(0)), OPTIMIZER, 0)
    return train, state, images


def classification_suite() -> list[dict[str, Any]]:
    """Every case, with its shares of the measured peaks; then the choices, on the first case."""
    peaks = bounds.Limits(bounds.product_peak(), bounds.copy_peak(256))
    rows: list[dict[str, Any]] = [
        {"name": "peak: 1024^3 matrix products on every device", "gflops": peaks.gflops},
        {"name": "peak: 256 MB read and written on every device", "gb_s": peaks.copy_gb_s},
    ]
    for case in CASES:
        rows.append(_timed(case.name, case, peaks))
    choices: list[tuple[str, dict[str, Any]]] = [
        ("lowering=shifts", {"lowering": "shifts"}),
        ("lowering=native", {"lowering": "native"}),
        ("batching=4", {"batching": 4}),
        ("batching=vmap", {"batching": "vmap"}),
        ("mode=mixed", {"mode": "mixed"}),
        ("mode=first_order", {"mode": "first_order"}),
        ("dtype=bfloat16", {"dtype": jnp.bfloat16}),
    ]
    for name, options in choices:
        rows.append(_timed(f"{OMNIGLOT_5.name}, {name}", OMNIGLOT_5, peaks, **options))
    return rows


def _timed(name: str, case: Case, peaks: bounds.Limits, **options: Any) -> dict[str, Any]:
    mode = options.get("mode", case.mode)
    # What is needed, which mixed mode computes some of twice: recomputation is no work done.
    work, moved = products_of(case, mode if mode == "first_order" else "reverse")
    per_call = 10 if case.steps == 1 and case.queries < 15 else 2
    if options.get("lowering") == "native":
        per_call = 1
    step, state = trainer(case, per_call, **options)
    timing = measure_loop(name, step, state, 5, per_call)
    return {
        **timing._asdict(),
        "gflop": work / 1e9,
        "gbyte": moved / 1e9,
        **bounds.shares_of(timing.median_ms, work, moved, peaks),
    }


def task_shapes(case: Case) -> Any:
    """Shapes of one episode."""
    sample = classification_problem(case.network(), case.ways, case.shots, case.queries).sample
    draw = lambda images: draw_episodes(sample, jax.random.key(0), images, 1)
    episodes = jax.eval_shape(draw, synthetic_images(case))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), episodes)


def products_of(case: Case, mode: str) -> tuple[float, float]:
    """Operations of all matrix products in one meta-step, and bytes of operands and results."""
    return sum_products(gradient_jaxpr(case, mode), case.tasks)


def gradient_jaxpr(case: Case, mode: str, **options: Any) -> Any:
    """Of one task's meta-gradient; options are those of the network."""
    network = case.network(**options)
    params = jax.eval_shape(network.init, jax.random.key(0))
    gradient = jax.grad(task_loss(case, network, mode), has_aux=True)
    return jax.make_jaxpr(gradient)(params, task_shapes(case)).jaxpr


def sum_products(jaxpr: Any, times: float = 1.0) -> tuple[float, float]:
    """Sums of what `products_in` yields."""
    found = list(products_in(jaxpr, times))
    return sum(operations for operations, _ in found), sum(moved for _, moved in found)


def products_in(jaxpr: Any, times: float = 1.0) -> Iterator[tuple[float, float]]:
    """For each matrix product in a jaxpr its operations, and bytes of its operands and result.

    Args:
        jaxpr: in which products in a loop are counted as often as it turns. A loop that ends by a
            condition is taken to turn once.
        times: that it is run.
    """
    for equation in jaxpr.eqns:
        operations = _operations(equation)
        if operations is not None:
            variables = (*equation.invars, *equation.outvars)
            yield times * operations, times * sum(_size(v.aval) for v in variables)
            continue
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from products_in(getattr(value, "jaxpr", value), times * turns)


def _operations(equation: Any) -> float | None:
    """Of one product; None for what is none."""
    name, out = equation.primitive.name, equation.outvars[0].aval.shape if equation.outvars else ()
    if name == "gemm":
        a = equation.invars[0].aval.shape
        return 2.0 * float(np.prod(out)) * (a[-2] if equation.params["transpose_a"] else a[-1])
    if name == "conv":
        a, b = (v.aval.shape for v in equation.invars)
        output, image = {"output": (out, a), "input": (a, out), "kernel": (b, a)}[
            equation.params["form"]
        ]
        kernel = equation.params["geometry"].size
        return 2.0 * float(np.prod(output)) * float(np.prod(kernel)) * image[-1]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = np.prod([equation.invars[0].aval.shape[d] for d in contracted])
        return 2.0 * float(np.prod(out)) * float(inner)
    return None


def _size(aval: Any) -> float:
    return float(np.prod(aval.shape)) * aval.dtype.itemsize


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def memory_rows() -> list[dict[str, Any]]:
    """Memory of a meta-gradient in each mode: what the compiler plans, and what is resident.

    MiniImagenet 5-way 5-shot, 5 steps, one task and a meta-batch of four at once; Omniglot 5-way
    1-shot, one task.
    """
    sizes = [(MINI_5_SHOT, 1), (MINI_5_SHOT, MINI_5_SHOT.tasks), (OMNIGLOT_5, 1)]
    return [
        {"case": case.name, "tasks at once": tasks, "mode": mode}
        | in_fresh_process(_memory_of, case, tasks, mode)
        for case, tasks in sizes
        for mode in MODES
    ]


def _memory_of(case: Case, num_tasks: int, mode: str) -> dict[str, Any]:
    """Compiles the meta-gradient of a batch of tasks and runs it once."""
    network = case.network()
    params = jax.jit(network.init)(jax.random.key(0))
    sample = classification_problem(network, case.ways, case.shots, case.queries).sample
    draw = jax.jit(functools.partial(draw_episodes, sample), static_argnums=2)
    episodes = draw(jax.random.key(0), synthetic_images(case), num_tasks)

    def batch_loss(mode: str) -> Any:
        one = task_loss(case, network, mode)
        return lambda p, t: jnp.mean(jax.vmap(lambda task: one(p, task)[0])(t))

    planned = memory_report(batch_loss, params, episodes, modes=[mode], has_aux=False)[mode]
    gradient = jax.jit(jax.grad(batch_loss(mode))).lower(params, episodes).compile()
    peak = resident_mb(lambda: jax.block_until_ready(gradient(params, episodes)))
    return {"temporary_mb": planned.temporary / 1e6, "resident_mb": peak}
