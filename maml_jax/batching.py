"""The task axis: how one task's function becomes a meta-batch's, on one device and on many.

Problems and losses are written for one task. Here, and nowhere else, they are spread over tasks:
`"vmap"` runs all tasks as one batched program, `"scan"` one task after the other, and a whole
number runs chunks of that many vmapped tasks one after the other. The result is the same; time and
memory are not (docs/meta_gradient_modes.md has the measurements).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maml_jax import types
from maml_jax.types import Array, Metrics, Params, PyTree, Task, TaskLoss

TASK_AXIS = "tasks"
SEED_AXIS = "seeds"
Batching = str | int | None

_MEASURED_DEFAULT: dict[str, Batching] = {"cpu": "vmap", "gpu": "vmap", "tpu": "vmap"}


def default_batching(platform: str | None = None) -> Batching:
    """The task batching for small networks on a platform.

    On a CPU the sinusoid's meta-gradient takes 1.3 times as long under `"scan"` as under `"vmap"`
    (`python -m benchmarks.run`). Large convolutions are the other way round there, because weights
    of one's own turn `vmap` into a grouped convolution; a problem that knows this passes its own
    choice. On accelerators `"vmap"`, one batched program, is assumed and not yet measured.

    Args:
        platform: "cpu", "gpu" or "tpu"; default that of the first device.
    """
    return _MEASURED_DEFAULT.get(platform or jax.default_backend(), "vmap")


def resolve_batching(batching: Batching, num_tasks: int) -> int:
    """The number of tasks that are vmapped together, from 1 (scan) to `num_tasks` (vmap).

    Raises:
        ValueError: `batching` is neither None, "vmap", "scan" nor a chunk size of 1 or more.
    """
    if batching is None:
        batching = default_batching()
    if batching == "vmap":
        return num_tasks
    if batching == "scan":
        return 1
    if isinstance(batching, (int, np.integer)) and not isinstance(batching, bool) and batching > 0:
        return min(int(batching), num_tasks)
    raise ValueError(
        "batching must be None, 'vmap', 'scan' or a chunk size of 1 or more tasks; "
        f"received {batching!r}."
    )


def map_tasks(fn: Callable[[Any], Any], tasks: PyTree, batching: Batching = None) -> PyTree:
    """`fn` of each task, stacked: `jax.vmap(fn)(tasks)`, in the way that `batching` asks for."""
    chunk = resolve_batching(batching, axis_size(tasks))
    if chunk == axis_size(tasks):
        return jax.vmap(fn)(tasks)
    return jax.lax.map(fn, tasks, batch_size=None if chunk == 1 else chunk)


def in_pieces(fn: Callable[..., Any], at_most: int, platform: str = "cpu") -> Callable[..., Any]:
    """`fn`, which on a platform runs at most so many at once, whatever `vmap`s are put around it.

    What is more is run one piece after the other. For functions that factorise matrices: jaxlib
    0.10.0 to 0.11.0 hands a batch that costs more than 200,000 operations out to XLA's threads and
    waits for them on those threads, for ever if as many batches come at once as there are threads
    (`factorized_at_once` says how many are below that). And pieces stay in a CPU's caches.

    Args:
        fn: of at least one array; not to be differentiated in reverse mode.
        at_most: how many at once.
        platform: JAX's default back end where it does; on others `fn` is vmapped as it is.

    Raises:
        ValueError: `at_most` is less than 1.
    """
    types.check_counts(at_most=at_most)
    return _in_pieces(fn, at_most, platform, 0)


def _in_pieces(
    fn: Callable[..., Any], at_most: int, platform: str, depth: int
) -> Callable[..., Any]:
    """`in_pieces` of arguments with so many leading axes."""

    @jax.custom_batching.custom_vmap
    def call(*args: Any) -> Any:
        if depth == 0:
            return fn(*args)
        lead = jnp.shape(jax.tree.leaves(args)[0])[:depth]
        count = math.prod(lead)
        flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[depth:]), args)
        pieces = -(-count // at_most) if jax.default_backend() == platform else 1
        found = _piecewise(jax.vmap(fn), flat, -(-count // max(pieces, 1)))
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)

    @call.def_vmap
    def rule(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        whole = jax.tree.map(
            lambda x, has: x if has else jnp.broadcast_to(x, (size, *jnp.shape(x))),
            args,
            tuple(batched),
        )
        found = _in_pieces(fn, at_most, platform, depth + 1)(*whole)
        return found, jax.tree.map(lambda _: True, found)

    return call


def _piecewise(many: Callable[..., Any], args: tuple[Any, ...], piece: int) -> Any:
    """`many(*args)`, so many elements at a time; `jax.lax.map` refuses leaves without elements."""
    count = axis_size(args)
    if count <= piece:
        return many(*args)
    whole, rest = divmod(count, piece)
    cut = jax.tree.map(lambda x: x[: whole * piece].reshape(whole, piece, *x.shape[1:]), args)
    found = jax.lax.map(lambda own: many(*own), cut)
    found = jax.tree.map(lambda x: x.reshape(whole * piece, *x.shape[2:]), found)
    if rest:
        last = many(*jax.tree.map(lambda x: x[whole * piece :], args))
        found = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, last)
    return found


def factorized_at_once(side: int, right_sides: int = 1) -> int:
    """How many square matrices cost less than 200,000 operations to factorise and solve with, or 1.

    By Cholesky, as jaxlib counts: a third of the cube of a side, and its square for a right side.

    Args:
        side: rows of each matrix.
        right_sides: that each is solved with; `side` of them to invert it.
    """
    return max(1, int(199_999 / max(side**3 / 3, side**2 * right_sides)))


class TaskGradients(NamedTuple):
    """What T tasks contribute to a meta-step.

    Attributes:
        losses: [T].
        metrics: with a leading axis of T.
        gradient: of the sum of the losses, in the form of the parameters, at least float32.
        nonfinite: bool [T]: whether the loss or the gradient of a task is not finite.
    """

    losses: Array
    metrics: Metrics
    gradient: Params
    nonfinite: Any


def sum_gradient(
    task_loss: TaskLoss,
    params: Params,
    tasks: Task,
    batching: Batching = None,
    single_out: bool = True,
) -> TaskGradients:
    """The gradient of the sum of a loss over tasks, in bounded memory.

    Chunks are differentiated one by one and their gradients added up, so that the memory needed is
    that of one chunk, whatever the number of tasks. Gradients of half-precision parameters are
    added up in float32.

    Where the gradient is not finite although losses are, the same program runs again for single
    tasks, to tell which they are. The loop around it has no reverse-mode derivative; only `"scan"`
    does without it.

    Args:
        task_loss: `task_loss(params, task) -> (scalar, metrics)` for one task.
        params: what to differentiate in.
        tasks: a task pytree with a leading axis of T on every leaf.
        batching: see the module's docstring.
        single_out: whether to tell which task of a chunk has a gradient that is not finite; else
            all tasks of that chunk are named. For losses that talk to other devices, which must
            not run again on one of them alone.
    """
    num_tasks = axis_size(tasks)
    chunk = resolve_batching(batching, num_tasks)

    if chunk == 1 or not single_out:  # no task is looked at again
        found, bad = _gradients(task_loss, params, tasks, chunk, None)
        bad = jnp.repeat(bad, chunk)[:num_tasks]
        return found._replace(nonfinite=bad | ~jnp.isfinite(found.losses))

    def one_pass(turn: Array) -> tuple[TaskGradients, Array]:
        return _gradients(task_loss, params, tasks, chunk, turn)

    # Traced once, for the shapes of what the loop carries and for the loop.
    closed, shapes = jax.make_jaxpr(one_pass, return_shape=True)(np.int32(0))
    evaluate, form = jex.jaxpr_as_fun(closed), jax.tree.structure(shapes)
    # The task of each chunk that pass i looks at, from i = 1; of a shorter last chunk, the last.
    starts = jnp.arange(0, num_tasks, chunk)
    sizes = jnp.minimum(chunk, num_tasks - starts)

    def body(carry: Any) -> Any:
        turn, _, nonfinite, found = carry
        new, bad = jax.tree.unflatten(form, evaluate(turn))
        first = turn == 0
        found = jax.tree.map(lambda a, b: jnp.where(first, a, b), new, found)
        index = starts + jnp.clip(turn, 1, sizes) - 1
        nonfinite = nonfinite.at[index].set(jnp.where(first, nonfinite[index], bad))
        # Where no loss is finite the parameters are to blame, and no task.
        search = jnp.any(jnp.isfinite(new.losses)) & ~types.all_finite(new.gradient)
        return turn + 1, jnp.where(first, search, turn < chunk), nonfinite, found

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])
    start = (np.int32(0), np.bool_(True), jnp.zeros((num_tasks,), bool), zeros)
    _, _, nonfinite, found = jax.lax.while_loop(lambda carry: carry[1], body, start)
    return found._replace(nonfinite=nonfinite | ~jnp.isfinite(found.losses))


def _gradients(
    task_loss: TaskLoss, params: Params, tasks: Task, chunk: int, turn: Array | None
) -> tuple[TaskGradients, Array]:
    """One pass over the tasks, and whether the gradient of each chunk is not finite.

    In pass 0 a chunk has its tasks, and is not judged; in pass i its i-th task in the place of all.
    Without a number of the pass it has its tasks and is judged.
    """
    num_tasks = axis_size(tasks)

    def checked(p: Params, task: Task) -> tuple[Array, Metrics]:
        loss, metrics = types.check_loss_output(task_loss(p, task), "task_loss")
        return loss, types.check_metrics(metrics, "task_loss")

    def part(chunk_tasks: Task) -> tuple[TaskGradients, Array]:
        size = axis_size(chunk_tasks)
        if turn is not None:
            index = jnp.where(turn == 0, jnp.arange(size), jnp.minimum(turn, size) - 1)
            chunk_tasks = jax.tree.map(lambda x: jnp.asarray(x)[index], chunk_tasks)
        losses, metrics, grads = _chunk_gradient(checked, params, chunk_tasks)
        if turn is None:
            bad = ~types.all_finite(grads)
        else:
            bad = jax.lax.cond(turn > 0, lambda g: ~types.all_finite(g), lambda _: False, grads)
        return TaskGradients(losses, metrics, grads, None), bad

    if chunk == num_tasks:
        found, bad = part(tasks)
        return found, bad[None]

    whole = num_tasks // chunk
    head = jax.tree.map(lambda x: x[: whole * chunk].reshape(whole, chunk, *x.shape[1:]), tasks)

    def body(total, chunk_tasks):
        found, bad = part(chunk_tasks)
        total = jax.tree.map(jnp.add, total, found.gradient)
        return total, (found.losses, found.metrics, bad)

    zero = jax.tree.map(lambda p: jnp.zeros_like(types.widen(p)), params)
    total, (*stacked, bad) = jax.lax.scan(body, zero, head)
    losses, metrics = jax.tree.map(lambda x: x.reshape(whole * chunk, *x.shape[2:]), stacked)
    if whole * chunk < num_tasks:
        last, last_bad = part(jax.tree.map(lambda x: x[whole * chunk :], tasks))
        total = jax.tree.map(jnp.add, total, last.gradient)
        losses, metrics, bad = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            (losses, metrics, bad),
            (last.losses, last.metrics, last_bad[None]),
        )
    return TaskGradients(losses, metrics, total, None), bad


def _chunk_gradient(
    task_loss: TaskLoss, params: Params, tasks: Task
) -> tuple[Array, Metrics, Params]:
    """Losses, metrics, and the gradient of the losses' sum, of tasks that are vmapped."""
    if axis_size(tasks) == 1:  # an axis of one task costs copies between layouts on a CPU
        alone = jax.tree.map(lambda x: jnp.asarray(x)[0], tasks)
        (loss, metrics), grads = jax.value_and_grad(task_loss, has_aux=True)(params, alone)
        loss, metrics = jax.tree.map(lambda x: jnp.asarray(x)[None], (loss, metrics))
        return loss, metrics, jax.tree.map(types.widen, grads)
    if any(types.is_half(leaf) for leaf in jax.tree.leaves(params)):
        differentiate = jax.vmap(jax.value_and_grad(task_loss, has_aux=True), (None, 0))
        (losses, metrics), grads = differentiate(params, tasks)
        return losses, metrics, jax.tree.map(lambda g: jnp.sum(types.widen(g), axis=0), grads)

    def total(p: Params) -> tuple[Array, tuple[Array, Metrics]]:
        losses, metrics = jax.vmap(task_loss, (None, 0))(p, tasks)
        return jnp.sum(losses), (losses, metrics)

    (_, (losses, metrics)), grads = jax.value_and_grad(total, has_aux=True)(params)
    return losses, metrics, grads


def mean_over_tasks(values: PyTree, num_devices: int = 1) -> PyTree:
    """The mean over the leading axis of T, and over the devices of a task mesh.

    Args:
        values: floating-point arrays with a leading axis of a device's tasks.
        num_devices: with more than 1, called under `shard_map` over `TASK_AXIS`; every device has
            the same number of tasks, and one all-reduce carries all values.
    """
    means = jax.tree.map(lambda x: jnp.mean(types.widen(x), axis=0), values)
    return mean_over_devices(means, num_devices)


def mean_over_devices(values: PyTree, num_devices: int = 1) -> PyTree:
    """The mean of each device's values over a task mesh, by one all-reduce."""
    if num_devices == 1:
        return values
    flat, unravel = ravel_pytree(values)
    return unravel(jax.lax.pmean(flat, TASK_AXIS))


def axis_size(tasks: PyTree) -> int:
    """T, the length of the leading axis that every leaf of `tasks` shares.

    Raises:
        ValueError: there is no leaf, or leaves disagree.
    """
    leaves = jax.tree.leaves(tasks)
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            "tasks must have one leading axis of T tasks on every leaf; received shapes "
            f"{[jnp.shape(leaf) for leaf in leaves]}."
        )
    return sizes.pop()


def task_mesh(num_tasks: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `TASK_AXIS`, over as many devices as divide the tasks evenly.

    Where several processes make up the run (`jax.distributed`), each gives as many devices. Tasks
    that cannot be split evenly between the processes are not split between them: the mesh is then
    one of this process's own devices, and every process does the same work.

    Args:
        num_tasks: T.
        devices: to choose from; default all that JAX sees. Of D devices the largest number that
            divides T is used: 25 tasks on 8 devices run on 5.
    """
    return Mesh(seed_mesh(1, num_tasks, devices).devices[0], (TASK_AXIS,))


def seed_mesh(num_seeds: int, num_tasks: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `SEED_AXIS` and `TASK_AXIS` over as many devices as both can use.

    Seeds need nothing of each other, tasks an all-reduce, so that where there is a choice seeds are
    split first: 4 seeds of 32 tasks on 8 devices make it 4 x 2, 2 seeds of 25 tasks on 2, 2 x 1.

    Args:
        num_seeds: states that are trained at a time, by `over_seeds`.
        num_tasks: T of each.
        devices: as for `task_mesh`, as are several processes.
    """
    types.check_counts(num_seeds=num_seeds, num_tasks=num_tasks)
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        by_process.setdefault(device.process_index, []).append(device)
    most = min(len(own) for own in by_process.values())
    seeds = 0
    for count in range(most, 0, -1):  # devices of each process
        seeds = _seed_groups(num_seeds, num_tasks, count * len(by_process))
        if seeds:
            break
    else:  # the processes cannot share the work: each does all of it
        if jax.process_index() not in by_process:
            raise ValueError(
                f"{num_tasks} tasks cannot be split evenly over {len(by_process)} processes, and "
                "none of the devices is this process's own."
            )
        return seed_mesh(num_seeds, num_tasks, by_process[jax.process_index()])
    used = [device for own in by_process.values() for device in own[:count]]
    return Mesh(np.array(used).reshape(seeds, -1), (SEED_AXIS, TASK_AXIS))


def _seed_groups(num_seeds: int, num_tasks: int, num_devices: int) -> int:
    """The most groups of seeds with which all of so many devices have as much to do, or 0."""
    fitting = (
        groups
        for groups in range(min(num_seeds, num_devices), 0, -1)
        if num_seeds % groups == num_devices % groups == num_tasks % (num_devices // groups) == 0
    )
    return next(fitting, 0)


def check_mesh(mesh: Mesh, num_tasks: int) -> int:
    """The number of devices that the tasks are split between.

    Raises:
        ValueError: the mesh is neither a task nor a seed mesh, or does not divide the tasks.
    """
    if mesh.axis_names not in ((TASK_AXIS,), (SEED_AXIS, TASK_AXIS)):
        raise ValueError(
            f"the mesh must have the axis {TASK_AXIS!r}, or {SEED_AXIS!r} and {TASK_AXIS!r}; "
            f"received {mesh.axis_names}."
        )
    count = mesh.shape[TASK_AXIS]
    if num_tasks % count:
        raise ValueError(
            f"the number of tasks must be a multiple of the mesh's devices; received {num_tasks} "
            f"tasks for {count} devices. task_mesh({num_tasks}) makes one that fits, or seed_mesh "
            "for several seeds."
        )
    return count


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree with a copy of every leaf on every device of the mesh."""
    return place(tree, mesh, PartitionSpec())


def split_tasks(tasks: PyTree, mesh: Mesh) -> PyTree:
    """The tasks with their leading axis split over the devices of the mesh."""
    return place(tasks, mesh, PartitionSpec(TASK_AXIS))


def place(tree: PyTree, mesh: Mesh, specs: Any) -> PyTree:
    """The tree on the devices of the mesh; a leaf that lies there as asked stays where it is.

    On a mesh of several processes every process calls this with the same values.

    Args:
        tree: arrays, typed keys among them.
        mesh: a task or a seed mesh.
        specs: a `PartitionSpec` for all leaves, or a pytree prefix of `tree` with them.
    """
    shardings = _shardings(mesh, specs)
    if not mesh.is_multi_process:
        return jax.device_put(tree, shardings)
    shardings = jax.tree.broadcast(shardings, tree)
    return jax.tree.map(_place_between_processes, tree, shardings)


def shapes(tree: PyTree, mesh: Mesh, specs: Any) -> PyTree:
    """A `jax.ShapeDtypeStruct` for every leaf, as `place` would put it; to compile for.

    Args:
        tree: arrays, or anything else with a shape and a dtype.
        mesh: a task or a seed mesh.
        specs: as in `place`.
    """
    shardings = jax.tree.broadcast(_shardings(mesh, specs), tree)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=where),
        tree,
        shardings,
    )


def _shardings(mesh: Mesh, specs: Any) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)


def _is_spec(value: Any) -> bool:
    return isinstance(value, PartitionSpec)


def _place_between_processes(x: Any, sharding: NamedSharding) -> Array:
    if isinstance(x, Tracer):
        return jax.lax.with_sharding_constraint(x, sharding)
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        data = _place_between_processes(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside a program over several processes: the leaves whole on every device, to be read."""
    if not mesh.is_multi_process:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def bring_home(tree: PyTree) -> PyTree:
    """Replicated leaves of a mesh of several processes as this process's own; others as they are.

    Args:
        tree: arrays, typed keys among them, that are whole on every device.
    """

    def own(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                own(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(own, tree)


def check_tasks(tasks: PyTree) -> None:
    """Raises a ValueError or TypeError if `tasks` is no batch of tasks."""
    types.check_is_task(tasks)
    if axis_size(tasks) < 1:
        raise ValueError("tasks must hold 1 task or more; received a leading axis of 0.")


def settle(values: PyTree, mesh: Mesh) -> PyTree:
    """Waits for the results of a program over several devices of a CPU; else does nothing.

    XLA's CPU client runs programs that do not depend on each other at the same time, on as few
    threads as there are devices; where they hold all-reduces, each can end up waiting for a thread
    that the other has. On accelerators the next program may be dispatched before this one ends.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        return jax.block_until_ready(values)
    return values
