"""Meta-training: the one loop, many meta-steps in one compiled dispatch on a device mesh.

Each meta-step draws T tasks and hands them to a `MetaUpdate`. Every problem and every update runs
through it: supervised or reinforcement learning, an optimizer on the meta-gradient or TRPO.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from maml_jax import checks
from maml_jax import mesh as mesh_lib
from maml_jax.kernels.dispatch import settle
from maml_jax.types import Array, MetaUpdate, Metrics, NonFiniteError, Params, Task

DRAWN_AT_ONCE_MB = 64  # of a device's tasks; more are drawn chunk by chunk
WHOLE = PartitionSpec()

Sampler = Callable[..., Task]


class MetaState(NamedTuple):
    """Everything that meta-training carries from one meta-step to the next.

    Attributes:
        params: the meta-parameters: theta, and whatever else is meta-learned.
        update_state: of the meta-update: the meta-optimizer's state, most often.
        step: meta-steps taken, int32.
        key: PRNG key of the run; never used itself, only folded with the step and the task.
    """

    params: Params
    update_state: Any
    step: Array
    key: Array


def init(params: Params, update: Any, key: Array | int) -> MetaState:
    """A `MetaState` at step 0.

    Args:
        params: initial meta-parameters.
        update: the `MetaUpdate` that they are trained by; its `init` makes the update's state.
        key: a typed PRNG key (`jax.random.key`), or a seed.

    Raises:
        TypeError: the update refuses a leaf of `params` (`gradient_update` without a mask moves
            floating-point arrays only), or `key` is not a typed key.
    """
    checks.check_has_float_leaf(params)
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(int(key))
    if not jnp.issubdtype(getattr(key, "dtype", object), jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed PRNG key, jax.random.key(seed); received {key!r}.")
    # Copies, because training donates the state and must not eat the caller's arrays; with a dtype,
    # because a weak one would become strong in the first step, and the program be compiled twice.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p), copy=True), params)
    step = jnp.zeros((), jnp.int32)
    # Some optimizers keep the initial parameters themselves, which cannot be donated twice.
    update_state = jax.tree.map(lambda x: jnp.array(x, copy=True), update.init(params))
    return MetaState(params, update_state, step, jnp.array(key, copy=True))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainFn:
    """Meta-steps in one dispatch, `train(state, *data) -> (state, metrics)`; donates `state`.

    Attributes:
        compiled: the program, of `state` and the tuple `data`.
        mesh: the mesh that it runs on.
        num_meta_steps: meta-steps of one call.
        data_specs: how `data` lies on the mesh.
        on_device: what each device runs, `on_device(state, data)`.
        draw: `draw(params, key, *data)`, the sampler.
    """

    compiled: Any
    mesh: Mesh
    num_meta_steps: int
    data_specs: Any
    on_device: Callable[[MetaState, tuple[Any, ...]], tuple[MetaState, Metrics]]
    draw: Sampler
    _checked: list[Any] = dataclasses.field(default_factory=list, repr=False)

    def __call__(self, state: MetaState, *data: Any) -> tuple[MetaState, Metrics]:
        """Puts the arguments in place, runs the program, and returns what it returns."""
        given = jax.tree.leaves(data)
        # One placement for every call, or the first call (a state fresh from `init`) and the
        # second (one that came out of the mesh) would each compile a program.
        state, data = mesh_lib.place((state, data), self.mesh, (WHOLE, self.data_specs))
        check_data(self.draw, self._checked, given, state, data)
        return settle(self.compiled(state, data), self.mesh)

    def lower(self, state: MetaState, *data: Any) -> jax.stages.Lowered:
        """The program for arguments of these shapes, as `jax.jit(...).lower`, without running it.

        `train.lower(state, *data).compile()` compiles ahead of time: calls with arguments of these
        shapes then compile nothing.

        Args:
            state: as in a call, or `jax.ShapeDtypeStruct`s of it; it is not donated.
            *data: the same.
        """
        specs = (WHOLE, self.data_specs)
        return self.compiled.lower(*mesh_lib.shapes((state, data), self.mesh, specs))


def check_data(
    draw: Sampler, checked: list[Any], given: list[Any], state: MetaState, data: tuple[Any, ...]
) -> None:
    """Traces the sampler with the values of new data, once: the program sees only shapes.

    Args:
        draw: the sampler.
        checked: leaves of the data that was checked last; updated.
        given: leaves of the data, as the caller gave them.
        state: of which `draw` gets parameters and key.
        data: placed on the mesh.
    """
    known = len(given) == len(checked) and all(map(operator.is_, given, checked))
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((given, data)))
    if known or traced:
        return
    # A sampler that talks to other devices names an axis that is not there outside the program.
    with contextlib.suppress(NameError):
        jax.eval_shape(lambda params, key: draw(params, key, *data), state.params, state.key)
    checked[:] = given


def make_train_fn(
    sample: Sampler,
    update: MetaUpdate,
    *,
    num_tasks: int,
    num_meta_steps: int,
    steps_per_draw: int | None = None,
    mesh: Mesh | None = None,
    data_specs: Any = WHOLE,
) -> TrainFn:
    """Compiles many meta-steps into one dispatch, with the tasks drawn inside it.

    The result is `train(state, *data) -> (state, metrics)`. It donates `state` (to keep parameters,
    copy them before the next call: `best = jax.tree.map(jnp.copy, state.params)`), moves nothing
    between host and device, and splits the tasks over the devices of `mesh`: each device draws and
    differentiates its share of the tasks, one all-reduce adds up, and every device takes the same
    step. Which task is drawn depends on the state's key, the step and the task's index alone, so
    that results do not depend on the number of devices, on `num_meta_steps` or `steps_per_draw`.

    Args:
        sample: `sample(params, key, *data) -> Task`, one task; a problem's.
        update: how the meta-parameters move, `gradient_update(learner.loss, optax.adam(1e-3))` say.
        num_tasks: T, tasks of a meta-batch.
        num_meta_steps: meta-steps of one dispatch.
        steps_per_draw: for how many meta-steps tasks are drawn at a time. More than 1 is faster for
            small problems, at the memory of that many meta-batches, and `sample` then gets None as
            its `params`. Default 1, which suits samplers that use the parameters.
        mesh: a mesh with the axis "tasks", or with "members" and "tasks" where `over_members`
            follows; default `task_mesh(num_tasks)`.
        data_specs: how `data` lies on the mesh: a `PartitionSpec`, or a pytree prefix of the tuple
            `data` with them. Default: whole on every device. `sample` sees its device's part, and
            may fetch from other parts by collectives over the mesh's axis.

    Returns:
        A function that runs the compiled program; it composes with `jax.jit` and `jax.vmap`, and
        has a method `lower`, to compile ahead of time. `data` are arrays that `sample` needs (a
        data set, say), placed on the mesh; metrics have a leading axis of `num_meta_steps`.

    Raises:
        ValueError: a count below 1, or a mesh that does not fit; (from the function) the state is
            that of another update, or what `sample` raises for `data`: it is traced once with the
            values of new data.
        TypeError: a count that is no integer; `update` is no `MetaUpdate`.
    """
    checks.check_counts(num_tasks=num_tasks, num_meta_steps=num_meta_steps)
    if not isinstance(update, MetaUpdate):
        raise TypeError(
            "update must be a MetaUpdate, gradient_update(learner.loss, optax.adam(1e-3)) say; "
            f"received {type(update).__name__}."
        )
    mesh = mesh_lib.task_mesh(num_tasks) if mesh is None else mesh
    local_tasks = num_tasks // mesh_lib.check_mesh(mesh, num_tasks)
    if steps_per_draw is not None:
        checks.check_counts(steps_per_draw=steps_per_draw)
    block = min(steps_per_draw or 1, num_meta_steps)

    def keys_of(step: Array, key: Array) -> Array:
        """A PRNG key for each of this device's tasks."""
        indices = mesh_lib.first_task(local_tasks) + jnp.arange(local_tasks)
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), indices)

    def take_step(state: MetaState, tasks: Any, move: Any) -> tuple[MetaState, Metrics]:
        params, update_state, metrics = move(state.params, state.update_state, tasks)
        return MetaState(params, update_state, state.step + 1, state.key), metrics

    def one_step(state: MetaState, data: tuple[Any, ...]) -> tuple[MetaState, Metrics]:
        keys = keys_of(state.step, state.key)
        draw = lambda key: sample(state.params, key, *data)  # noqa: E731
        drawn_mb = _size_mb(jax.eval_shape(jax.vmap(draw), keys))
        if drawn_mb <= DRAWN_AT_ONCE_MB or update.update_by_keys is None:
            return take_step(state, jax.vmap(draw)(keys), update.update)
        # A sampler of data that is spread talks to other devices: it must not run on one alone.
        return take_step(state, keys, update.update_by_keys(draw, data_specs == WHOLE))

    def one_block(state: MetaState, data: tuple[Any, ...], length: int) -> Any:
        steps = state.step + jnp.arange(length)
        draw = jax.vmap(lambda key: sample(None, key, *data))
        drawn = jax.vmap(lambda step: draw(keys_of(step, state.key)))(steps)
        return jax.lax.scan(lambda s, tasks: take_step(s, tasks, update.update), state, drawn)

    def train(state: MetaState, data: tuple[Any, ...]) -> tuple[MetaState, Metrics]:
        checks.check_fits(
            "state.update_state",
            jax.eval_shape(update.init, state.params),
            state.update_state,
            "Make the state by maml_jax.init(params, update, key) with this update.",
        )
        if block == 1:
            return jax.lax.scan(lambda s, _: one_step(s, data), state, length=num_meta_steps)
        blocks, rest = divmod(num_meta_steps, block)
        state, metrics = jax.lax.scan(lambda s, _: one_block(s, data, block), state, length=blocks)
        metrics = jax.tree.map(lambda x: x.reshape(blocks * block, *x.shape[2:]), metrics)
        if rest:
            state, tail = one_block(state, data, rest)
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, tail)
        return state, metrics

    sharded = mesh_lib.on_mesh(train, mesh, (WHOLE, data_specs), WHOLE)
    compiled = jax.jit(sharded, donate_argnums=0)
    return TrainFn(compiled, mesh, num_meta_steps, data_specs, train, sample)


def _size_mb(tree: Any) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6


CAUSES = (
    "Likely causes: an inner learning rate that makes the inner loop diverge, a meta learning rate "
    "that is too large, inputs or targets that are not finite, or a square root, logarithm or "
    "division at 0 in the loss or the inner optimizer (optax.adam needs eps_root > 0 to be "
    "differentiated)."
)


def check_finite(metrics: Metrics, first_step: int = 0) -> None:
    """Raises if a loss, a gradient or a parameter was not finite; reads metrics to the host.

    Args:
        metrics: from a train function, with any leading axes (members, steps).
        first_step: the meta-step that the metrics begin at.

    Raises:
        NonFiniteError: says at which meta-step, in how many tasks and in which first, and why that
            most often happens.
    """

    def by_run(name: str) -> np.ndarray:
        values = np.atleast_1d(np.asarray(metrics[name]))
        return values.reshape(-1, values.shape[-1])  # [runs, meta-steps]

    tasks, update = by_run("nonfinite_tasks"), by_run("nonfinite_update")
    bad = (tasks > 0) | (update > 0)
    if not bad.any():
        return
    index = int(np.argmax(bad.any(axis=0)))
    run = int(np.argmax(bad[:, index]))
    where = f"at meta-step {first_step + index}" + (f" of run {run}" if len(bad) > 1 else "")
    if not tasks[run, index]:
        raise NonFiniteError(
            f"the meta-gradient, or a parameter after the step, is not finite {where}, and no "
            "single task is to blame: the sum of gradients or the meta-optimizer's step is too "
            "large for its type, or tasks were differentiated together. " + CAUSES
        )
    of_loss = by_run("nonfinite_losses")[run, index] > 0
    first = by_run("first_nonfinite_task")[run, index]
    raise NonFiniteError(
        f"the meta-{'loss' if of_loss else 'gradient'} is not finite {where}"
        + ("" if of_loss else ", although the losses are")
        + f": {int(tasks[run, index])} task(s), the first of them task {int(first)}. {CAUSES}"
    )
