"""The meta-training loop: runs many meta-steps in one compiled dispatch on a device mesh.

Each meta-step draws T tasks and passes them to a `MetaUpdate`. The loop serves every problem and
every update: supervised and reinforcement learning, gradient updates and TRPO.
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

from maml_jax import checks, loop_checks
from maml_jax import mesh as mesh_lib
from maml_jax.kernels.dispatch import settle
from maml_jax.types import Array, MetaUpdate, Metrics, Params, Task

DRAWN_AT_ONCE_MB = 64  # size of a device's tasks above which they are drawn chunk by chunk
WHOLE = PartitionSpec()

Sampler = Callable[..., Task]


class MetaState(NamedTuple):
    """The state of meta-training, from `init`.

    Attributes:
        params: the meta-parameters: theta and other meta-learned values.
        update_state: state of the meta-update, for example of its optimizer.
        step: number of meta-steps taken, int32.
        key: typed PRNG key of the run. Each use folds in the step and the task.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import gradient_update, init
        >>> update = gradient_update(lambda theta, task: (theta**2, {}), optax.sgd(0.1))
        >>> init(jnp.array(1.0), update, key=0)._fields
        ('params', 'update_state', 'step', 'key')
    """

    params: Params
    update_state: Any
    step: Array
    key: Array


def init(params: Params, update: Any, key: Array | int) -> MetaState:
    """Makes a `MetaState` at step 0.

    Args:
        params: initial meta-parameters; copied, because training donates the state.
        update: the `MetaUpdate` of the training; its `init` makes the update's state.
        key: a typed PRNG key (`jax.random.key`), or a seed, from which the tasks are drawn. Use
            another key than for `params`: `init_key, train_key = jax.random.split(key)`. From the
            same key, the keys of layers can equal those of meta-steps.

    Raises:
        ValueError: `params` has no floating-point leaf.
        TypeError: the update refuses a leaf of `params` (`gradient_update` without a mask requires
            floating-point leaves), or `key` is not a typed key.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import gradient_update, init
        >>> update = gradient_update(lambda theta, task: (theta**2, {}), optax.sgd(0.1))
        >>> state = init(jnp.array(1.0), update, key=0)
        >>> int(state.step), float(state.params)
        (0, 1.0)
    """
    checks.check_has_float_leaf(params)
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(int(key))
    if not jnp.issubdtype(getattr(key, "dtype", object), jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed PRNG key, jax.random.key(seed); received {key!r}.")
    # Copies protect the caller's arrays from donation. An explicit dtype avoids a second
    # compilation, because the first step turns a weak type into a strong one.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p), copy=True), params)
    step = jnp.zeros((), jnp.int32)
    # Some optimizers store the initial parameters, and a buffer can be donated only once.
    update_state = jax.tree.map(lambda x: jnp.array(x, copy=True), update.init(params))
    return MetaState(params, update_state, step, jnp.array(key, copy=True))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainFn:
    """Meta-steps in one dispatch, `train(state, *data) -> (state, metrics)`; donates `state`.

    Attributes:
        compiled: the compiled program; its arguments are `state` and the tuple `data`.
        mesh: the mesh of the program.
        num_meta_steps: meta-steps per call.
        data_specs: the partition specs of `data` on the mesh.
        on_device: `on_device(state, data)`, the part of the program that each device runs.
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
        """Places the arguments on the mesh and runs the program; see `make_train_fn`."""
        loop_checks.check_state(state)
        given = jax.tree.leaves(data)
        # A state from `init` and one from an earlier call are placed differently, which would
        # compile the program twice.
        state, data = mesh_lib.place((state, data), self.mesh, (WHOLE, self.data_specs))
        check_data(self.draw, self._checked, given, state, data)
        return settle(self.compiled(state, data), self.mesh)

    def lower(self, state: MetaState, *data: Any) -> jax.stages.Lowered:
        """Lowers the program for arguments of these shapes, as `jax.jit(...).lower` does.

        `train.lower(state, *data).compile()` compiles ahead of time: later calls with arguments of
        these shapes compile nothing.

        Args:
            state: a state or its `jax.ShapeDtypeStruct`s; not donated.
            *data: further arguments of the call, or their shapes.
        """
        loop_checks.check_state(state)
        specs = (WHOLE, self.data_specs)
        return self.compiled.lower(*mesh_lib.shapes((state, data), self.mesh, specs))


def check_data(
    draw: Sampler, checked: list[Any], given: list[Any], state: MetaState, data: tuple[Any, ...]
) -> None:
    """Traces the sampler once with new data, so that its checks read concrete values.

    Args:
        draw: the sampler.
        checked: leaves of the last checked data; updated in place.
        given: leaves of the caller's data.
        state: holds the parameters and the key for `draw`.
        data: the data on the mesh.
    """
    known = len(given) == len(checked) and all(map(operator.is_, given, checked))
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((given, data)))
    if known or traced:
        return
    # A sampler with collectives names a mesh axis, which is undefined outside the program.
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
    """Makes a compiled function that draws tasks and takes many meta-steps in one dispatch.

    The function splits the tasks over the devices of `mesh`. Each device draws and differentiates
    its share, one all-reduce sums the gradients, and every device takes the same step. Each task
    depends only on the state's key, the step and the task's index. Results therefore do not depend
    on the number of devices, on `num_meta_steps` or on `steps_per_draw`.

    Args:
        sample: `sample(params, key, *data) -> Task` draws one task, for example a problem's.
        update: the meta-update, for example `gradient_update(learner.loss, optax.adam(1e-3))`.
        num_tasks: T, tasks per meta-step.
        num_meta_steps: meta-steps per call.
        steps_per_draw: number of meta-steps whose tasks are drawn together. Values above 1 save
            time for small problems, need memory for as many meta-batches, and pass None to `sample`
            as `params`. Default: 1, for samplers that use the parameters.
        mesh: a mesh with the axis "tasks", or with "members" and "tasks" for `over_members`;
            default `task_mesh(num_tasks)`.
        data_specs: partition of `data` over the mesh: a `PartitionSpec`, or a pytree prefix of the
            tuple `data` with such specs. Default: replicated. `sample` receives its device's part
            and may fetch other parts by collectives over the axes of the mesh.

    Returns:
        `train(state, *data) -> (state, metrics)`; metrics have a leading axis of `num_meta_steps`.
        `data` holds arrays for `sample`, such as a data set. `train` donates `state`: copy
        parameters to keep them (`jax.tree.map(jnp.copy, state.params)`). It composes with
        `jax.jit` and `jax.vmap`; its method `lower` compiles ahead of time.

    Raises:
        ValueError: a count is below 1, or the mesh does not fit; from `train`: the state belongs to
            another update or holds several members, or the update changes shapes. `train` traces
            `sample` once with new data and raises its errors.
        TypeError: a count is not an integer, or `update` is not a `MetaUpdate`; from `train`:
            `state` is not a `MetaState`, or the update does not return `(params, state, metrics)`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import gradient_update, init, make_train_fn
        >>> sample = lambda params, key: 2.0 + jax.random.normal(key)  # a task: its target
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> update = gradient_update(loss, optax.sgd(0.1))
        >>> train = make_train_fn(sample, update, num_tasks=4, num_meta_steps=10)
        >>> state, metrics = train(init(jnp.array(0.0), update, key=0))
        >>> int(state.step), metrics["loss"].shape
        (10, (10,))
    """
    checks.check_counts(num_tasks=num_tasks, num_meta_steps=num_meta_steps)
    if not isinstance(update, MetaUpdate):
        raise TypeError(
            "update must be a MetaUpdate, for example gradient_update(learner.loss, "
            f"optax.adam(1e-3)); received {type(update).__name__}."
        )
    mesh = mesh_lib.task_mesh(num_tasks) if mesh is None else mesh
    local_tasks = num_tasks // mesh_lib.check_mesh(mesh, num_tasks)
    if steps_per_draw is not None:
        checks.check_counts(steps_per_draw=steps_per_draw)
    block = min(steps_per_draw or 1, num_meta_steps)

    def keys_of(step: Array, key: Array) -> Array:
        """Returns a PRNG key for each of this device's tasks."""
        indices = mesh_lib.first_task(local_tasks) + jnp.arange(local_tasks)
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), indices)

    def take_step(state: MetaState, tasks: Any, move: Any) -> tuple[MetaState, Metrics]:
        output = move(state.params, state.update_state, tasks)
        params, update_state, metrics = loop_checks.check_update_output(
            output, state.params, state.update_state
        )
        return MetaState(params, update_state, state.step + 1, state.key), metrics

    def one_step(state: MetaState, data: tuple[Any, ...]) -> tuple[MetaState, Metrics]:
        keys = keys_of(state.step, state.key)
        draw = lambda key: sample(state.params, key, *data)  # noqa: E731
        drawn_mb = _size_mb(jax.eval_shape(jax.vmap(draw), keys))
        if drawn_mb <= DRAWN_AT_ONCE_MB or update.update_by_keys is None:
            return take_step(state, jax.vmap(draw)(keys), update.update)
        # Samplers of partitioned data use collectives, which must not run on one device alone.
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
            "Make the state with maml_jax.init(params, update, key) and this update.",
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
