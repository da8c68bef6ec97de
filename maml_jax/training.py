"""Meta-training: many meta-steps in one compiled dispatch, the task axis on a device mesh.

One meta-step is the outer line of the paper's Algorithm 1: draw T tasks, take the gradient of the
mean of their meta-losses, and hand it to any optax optimizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from maml_jax import batching as tasks_lib
from maml_jax import optimizers, types
from maml_jax.types import Array, Metrics, NonFiniteError, Params, PyTree, Task, TaskLoss


class MetaState(NamedTuple):
    """Everything that meta-training carries from one meta-step to the next.

    Attributes:
        params: the meta-parameters: theta, and whatever else is meta-learned.
        optimizer_state: of the meta-optimizer.
        step: meta-steps taken, int32.
        key: PRNG key of the run; never used itself, only folded with the step and the task.
    """

    params: Params
    optimizer_state: Any
    step: Array
    key: Array


DRAWN_AT_ONCE_MB = 64  # of a device's tasks; more are drawn in the chunks of `batching`

Sampler = Callable[..., Task]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainFn:
    """Meta-steps in one dispatch, `train(state, *data) -> (state, metrics)`; donates `state`.

    Attributes:
        compiled: the program, of `state` and the tuple `data`.
        mesh: that it runs on.
        data_specs: how `data` lies on it.
        state_specs: how `state` does.
        on_device: what each device of the mesh runs, `on_device(state, data)`.
        draw: `draw(params, key, *data)`, by which tasks are drawn on each device, if by one.
    """

    compiled: Any
    mesh: Mesh
    data_specs: Any = PartitionSpec()  # noqa: RUF009
    state_specs: Any = PartitionSpec()  # noqa: RUF009
    on_device: Any = None
    draw: Sampler | None = None
    _checked: list[Any] = dataclasses.field(default_factory=list, repr=False)

    def __call__(self, state: MetaState, *data: Any) -> tuple[MetaState, Metrics]:
        """Puts the arguments in place, runs the program, and returns what it returns."""
        given = jax.tree.leaves(data)
        # One placement for every call, or the first call (a state fresh from `init`) and the
        # second (one that came out of the mesh) would each compile a program of their own.
        state, data = tasks_lib.place((state, data), self.mesh, self._specs)
        self._check_data(given, state, data)
        return tasks_lib.settle(self.compiled(state, data), self.mesh)

    def lower(self, state: MetaState, *data: Any) -> jax.stages.Lowered:
        """The program for arguments of these shapes, as `jax.jit(...).lower`, without running it.

        `train.lower(state, *data).compile()` compiles ahead of time: calls with arguments of these
        shapes then compile nothing.

        Args:
            state: as in a call, or `jax.ShapeDtypeStruct`s of it; it is not donated.
            *data: the same.
        """
        return self.compiled.lower(*tasks_lib.shapes((state, data), self.mesh, self._specs))

    def _check_data(self, given: list[Any], state: MetaState, data: tuple[Any, ...]) -> None:
        """Lets the sampler see the values of new data, once: the program sees only shapes."""
        known = len(given) == len(self._checked) and all(map(operator.is_, given, self._checked))
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((given, data)))
        if self.draw is None or known or traced:
            return
        draw = self.draw
        # A sampler that talks to other devices names an axis that is not there outside the program.
        with contextlib.suppress(NameError):
            jax.eval_shape(lambda params, key: draw(params, key, *data), state.params, state.key)
        self._checked[:] = given

    @property
    def _specs(self) -> tuple[PartitionSpec, Any]:
        return self.state_specs, self.data_specs


def on_every_device(
    fn: Callable[..., Any],
    mesh: Mesh,
    data_specs: Any = PartitionSpec(),  # noqa: B008
    state_specs: Any = PartitionSpec(),  # noqa: B008
    draw: Sampler | None = None,
) -> TrainFn:
    """The `TrainFn` of what each device of a mesh runs.

    Args:
        fn: `fn(state, data) -> (state, metrics)`, which adds up over devices by itself.
        mesh: that it runs on.
        data_specs: how `data` lies on it.
        state_specs: how `state`, before and after, and the metrics do. Where several processes make
            up the run, all of it is brought to every device at the end, to be read.
        draw: the sampler. It is traced with the values of new data, so that its checks see them.
    """
    # Replication is not tracked (check_vma): users' losses should not have to annotate what varies
    # between devices.
    sharded = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(state_specs, data_specs),
        out_specs=state_specs,
        check_vma=False,
    )

    def train(state: MetaState, data: tuple[Any, ...]) -> Any:
        found = sharded(state, data)
        return found if state_specs == PartitionSpec() else tasks_lib.gather(found, mesh)

    return TrainFn(jax.jit(train, donate_argnums=0), mesh, data_specs, state_specs, fn, draw)


def over_seeds(train: TrainFn, one_by_one: bool = False) -> TrainFn:
    """The same meta-steps for states, and data if any, with a leading axis of seeds.

    What `train` was made on decides where they go: on a `seed_mesh` each device has its share of
    the seeds, on a `task_mesh` all of them. No seed is told of another.

    Args:
        train: for one state, whose data is whole on every device; from `make_train_fn` or
            `reinforcement.make_iterate_fn`.
        one_by_one: a device's seeds one after the other rather than side by side, which is faster
            on a CPU where weights of each seed's own make small products smaller still.

    Returns:
        `train(states, *data) -> (states, metrics)` with leaves [S, ...] and [S, num_steps, ...], S
        a multiple of the seed mesh's groups.

    Raises:
        ValueError: `train` has its data spread over devices, or was not made by those functions.
    """
    if train.on_device is None:
        raise ValueError(
            "several seeds need what make_train_fn or make_iterate_fn made; received a TrainFn "
            "without on_device."
        )
    if train.data_specs != PartitionSpec():
        raise ValueError(
            "several seeds need data that is whole on every device; received a function whose "
            f"data is spread by {train.data_specs}."
        )

    def one(own: tuple[MetaState, tuple[Any, ...]]) -> tuple[MetaState, Metrics]:
        return train.on_device(*own)

    def many(states: MetaState, data: tuple[Any, ...]) -> tuple[MetaState, Metrics]:
        return (jax.lax.map if one_by_one else _vmap)(one, (states, data))

    def draw(params: Params, key: Array, *data: Any) -> Task:
        with jax.ensure_compile_time_eval():  # values, for the sampler's checks
            data = jax.tree.map(lambda x: x[0], data)
        params, key = jax.tree.map(lambda x: x[0], (params, key))
        return train.draw(params, key, *data)  # pyright: ignore[reportOptionalCall]

    split = tasks_lib.SEED_AXIS in train.mesh.axis_names
    specs = PartitionSpec(tasks_lib.SEED_AXIS) if split else PartitionSpec()
    return on_every_device(many, train.mesh, specs, specs, draw if train.draw else None)


def _vmap(fn: Callable[[Any], Any], xs: Any) -> Any:
    return jax.vmap(fn)(xs)


def init(
    params: Params, meta_optimizer: optax.GradientTransformation, key: Array | int
) -> MetaState:
    """A `MetaState` at step 0.

    Args:
        params: initial meta-parameters, floating-point arrays only.
        meta_optimizer: any optax transformation. In a step it receives the mean loss as `value=`
            and the gradient as `grad=`, if it takes them.
        key: a typed PRNG key (`jax.random.key`), or a seed.

    Raises:
        TypeError: a leaf of `params` is not floating point, or `key` is not a typed key.
    """
    types.check_all_float(params)
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(int(key))
    if not jnp.issubdtype(getattr(key, "dtype", object), jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed PRNG key, jax.random.key(seed); received {key!r}.")
    # Copies, because training donates the state and must not eat the caller's arrays; with a dtype,
    # because a weak one would become strong in the first step, and the program be compiled twice.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p), copy=True), params)
    step = jnp.zeros((), jnp.int32)
    # Some optimizers keep the initial parameters themselves, which cannot be donated twice.
    optimizer_state = jax.tree.map(lambda x: jnp.array(x, copy=True), meta_optimizer.init(params))
    return MetaState(params, optimizer_state, step, jnp.array(key, copy=True))


def meta_step(
    state: MetaState,
    tasks: Task,
    task_loss: TaskLoss,
    meta_optimizer: optax.GradientTransformation,
    *,
    batching: tasks_lib.Batching = None,
) -> tuple[MetaState, Metrics]:
    """One meta-step on tasks that the caller brings (paper Algorithm 1, lines 4 to 8).

    Pure: put it under `jax.jit`, into a loop, or under `vmap` over states.

    Args:
        state: from `init` or an earlier step.
        tasks: a task pytree with a leading axis of T on every leaf.
        task_loss: `task_loss(params, task) -> (loss, metrics)` for one task, most often
            `functools.partial(meta_loss, loss_fn, inner_lr=0.1)`.
        meta_optimizer: any optax transformation. In a step it receives the mean loss as `value=`
            and the gradient as `grad=`, if it takes them.
        batching: how tasks are batched, see `maml_jax.batching`.

    Returns:
        The next state; and the metrics of `task_loss`, averaged over tasks, with `"loss"`,
        `"nonfinite_losses"` and `"nonfinite_tasks"` (how many tasks had a loss, or a loss or a
        gradient, that is not finite),
        `"first_nonfinite_task"` (the first of these, or -1) and `"nonfinite_update"` (1 if the
        gradient of all tasks together, or a parameter after the step, is not finite);
        `check_finite` reads them.
    """
    tasks_lib.check_tasks(tasks)
    return _step(state, tasks, task_loss, meta_optimizer, batching, 1)


def make_train_fn(
    sample: Sampler,
    task_loss: TaskLoss,
    meta_optimizer: optax.GradientTransformation,
    *,
    num_tasks: int,
    num_steps: int,
    steps_per_draw: int | None = None,
    batching: tasks_lib.Batching = None,
    mesh: Mesh | None = None,
    data_specs: Any = PartitionSpec(),  # noqa: B008
) -> TrainFn:
    """Compiles many meta-steps into one dispatch, with the tasks drawn inside it.

    The result is `train(state, *data) -> (state, metrics)`. It donates `state` (to keep parameters,
    copy them before the next call: `best = jax.tree.map(jnp.copy, state.params)`), moves nothing
    between host and device, and splits the tasks over the devices of `mesh`: each device draws and
    differentiates its own tasks, one all-reduce adds the gradients up, and every device takes the
    same step. Which task is drawn depends on the state's key, the step and the task's index alone,
    so that results do not depend on the number of devices, on `num_steps` or on `steps_per_draw`.

    Args:
        sample: `sample(params, key, *data) -> Task`, one task.
        task_loss: as in `meta_step`.
        meta_optimizer: any optax transformation. In a step it receives the mean loss as `value=`
            and the gradient as `grad=`, if it takes them.
        num_tasks: T, tasks of a meta-batch.
        num_steps: meta-steps of one dispatch.
        steps_per_draw: for how many meta-steps tasks are drawn at a time. More than 1 is faster for
            small problems, at the memory of that many meta-batches, and `sample` then gets None as
            its `params`. Default 1, which suits samplers that look at the parameters.
        batching: how tasks are batched on each device, see `maml_jax.batching`. A chunk bounds the
            memory of any number of tasks: those of a large meta-batch are also drawn by chunks.
        mesh: a mesh with the axis "tasks", or with "seeds" and "tasks" where `over_seeds` follows;
            default `task_mesh(num_tasks)`.
        data_specs: how `data` lies on the mesh: a `PartitionSpec`, or a pytree prefix of the tuple
            `data` with them. Default: whole on every device. `sample` sees its device's part, and
            may fetch from other parts by collectives over the mesh's axis.

    Returns:
        A function that runs the compiled program; it composes with `jax.jit` and `jax.vmap`, with
        `over_seeds` to train several states at once, and has a method `lower`, to compile ahead of
        time.
        `data` are arrays that `sample` needs (a data set, say), placed on the mesh; metrics are
        those of `meta_step` with a leading axis of `num_steps`.

    Raises:
        ValueError: a count below 1, or a mesh that does not fit; (from the function) the state is
            that of another meta-optimizer, or what `sample` raises for `data`: it is traced once
            with the values of new data.
        TypeError: a count that is no integer.
    """
    types.check_counts(num_tasks=num_tasks, num_steps=num_steps)
    mesh = tasks_lib.task_mesh(num_tasks) if mesh is None else mesh
    num_devices = tasks_lib.check_mesh(mesh, num_tasks)
    local_tasks = num_tasks // num_devices
    if steps_per_draw is not None:
        types.check_counts(steps_per_draw=steps_per_draw)
    block = min(steps_per_draw or 1, num_steps)

    def keys_of(step, key):
        first = jax.lax.axis_index(tasks_lib.TASK_AXIS) * local_tasks
        step_key = jax.random.fold_in(key, step)
        indices = first + jnp.arange(local_tasks)
        return jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices)

    update = functools.partial(
        _step, meta_optimizer=meta_optimizer, batching=batching, num_devices=num_devices
    )

    def one(state, data):
        keys = keys_of(state.step, state.key)
        draw = lambda key: sample(state.params, key, *data)  # noqa: E731
        if _size_mb(jax.eval_shape(jax.vmap(draw), keys)) <= DRAWN_AT_ONCE_MB:
            return update(state, jax.vmap(draw)(keys), task_loss=task_loss)
        # A large meta-batch is drawn chunk by chunk, where its chunk is differentiated.
        # A sampler of spread data talks to other devices: it must not run on one alone.
        alone = data_specs == PartitionSpec()
        return update(
            state,
            keys,
            task_loss=lambda params, key: task_loss(params, draw(key)),
            single_out=alone,
        )

    def one_block(state, data, length):
        steps = state.step + jnp.arange(length)
        draw = jax.vmap(lambda key: sample(None, key, *data))
        drawn = jax.vmap(lambda step: draw(keys_of(step, state.key)))(steps)
        return jax.lax.scan(functools.partial(update, task_loss=task_loss), state, drawn)

    def train(state, data):
        if block == 1:
            return jax.lax.scan(lambda s, _: one(s, data), state, length=num_steps)
        blocks, rest = divmod(num_steps, block)
        state, metrics = jax.lax.scan(lambda s, _: one_block(s, data, block), state, length=blocks)
        metrics = jax.tree.map(lambda x: x.reshape(blocks * block, *x.shape[2:]), metrics)
        if rest:
            state, tail = one_block(state, data, rest)
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, tail)
        return state, metrics

    return on_every_device(train, mesh, data_specs, draw=sample)


def _size_mb(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6


def _step(state, tasks, task_loss, meta_optimizer, batching, num_devices, single_out=True):
    """One meta-step on this device's share of the tasks."""
    types.check_fits(
        "state.optimizer_state",
        jax.eval_shape(meta_optimizer.init, state.params),
        state.optimizer_state,
        "Make the state by maml_jax.init(params, meta_optimizer, key) with this meta_optimizer.",
    )
    local_tasks = tasks_lib.axis_size(tasks)
    num_tasks = local_tasks * num_devices
    found = tasks_lib.sum_gradient(task_loss, state.params, tasks, batching, single_out)
    losses, nonfinite = types.widen(found.losses), found.nonfinite.astype(jnp.float32)
    means = jax.tree.map(lambda x: jnp.sum(_float(x), axis=0) / num_tasks, found.metrics)
    grads = jax.tree.map(lambda g: g / num_tasks, found.gradient)
    if num_devices > 1:
        # Each device fills in its own tasks' losses; one all-reduce carries everything.
        start = jax.lax.axis_index(tasks_lib.TASK_AXIS) * local_tasks
        losses, nonfinite = (
            jax.lax.dynamic_update_slice(jnp.zeros((num_tasks,), x.dtype), x, (start,))
            for x in (losses, nonfinite)
        )
        flat, unravel = ravel_pytree((losses, nonfinite, means, grads))
        losses, nonfinite, means, grads = unravel(jax.lax.psum(flat, tasks_lib.TASK_AXIS))
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
    loss = jnp.mean(losses)
    updates, optimizer_state = optimizers.update(
        meta_optimizer, grads, state.optimizer_state, state.params, loss, "meta_optimizer"
    )
    params = optax.apply_updates(state.params, updates)
    report = {
        **means,
        "loss": loss,
        **nonfinite_report(~jnp.isfinite(losses), nonfinite > 0, grads, params),
    }
    return MetaState(params, optimizer_state, state.step + 1, state.key), report


def _float(x: Any) -> Array:
    return types.widen(x) if types.is_float(x) else jnp.asarray(x, jnp.result_type(float))


def nonfinite_report(losses: Array, nonfinite: Array, gradient: PyTree, params: Params) -> Metrics:
    """The metrics that `check_finite` reads.

    Args:
        losses: whether the loss of each task is not finite, bool [T].
        nonfinite: whether its loss or its gradient is not finite, bool [T].
        gradient: of all tasks together, or its norm.
        params: after the step.
    """
    return {
        "nonfinite_losses": jnp.sum(losses),
        "nonfinite_tasks": jnp.sum(nonfinite),
        "first_nonfinite_task": jnp.where(jnp.any(nonfinite), jnp.argmax(nonfinite), -1),
        "nonfinite_update": 1 - types.all_finite((gradient, params)).astype(jnp.int32),
    }


CAUSES = (
    "Likely causes: an inner learning rate that makes the inner loop diverge, a meta learning rate "
    "that is too large, inputs or targets that are not finite, or a square root, logarithm or "
    "division at 0 in the loss or the inner optimizer (optax.adam needs eps_root > 0 to be "
    "differentiated)."
)


def check_finite(metrics: Metrics, first_step: int = 0) -> None:
    """Raises if a loss, a gradient or a parameter was not finite. Reads metrics back to the host.

    Args:
        metrics: from `meta_step` or a train function, with any leading axes (seeds, steps).
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
