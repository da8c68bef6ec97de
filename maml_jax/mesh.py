"""The task axis over devices and hosts, and members of a run beside it.

A mesh has the axis "tasks", or "members" and "tasks". Tasks of one meta-step are added up by one
all-reduce; members do not communicate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maml_jax import checks
from maml_jax.types import Array, PyTree

TASK_AXIS = "tasks"
MEMBER_AXIS = "members"


def task_mesh(num_tasks: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `TASK_AXIS`, over as many devices as divide the tasks evenly.

    Where several processes make up the run (`jax.distributed`), each gives as many devices. Tasks
    that cannot be split evenly between the processes are not split between them: the mesh then has
    this process's devices only, and every process does the same work.

    Args:
        num_tasks: T.
        devices: to choose from; default all that JAX sees. Of D devices the largest number that
            divides T is used: 25 tasks on 8 devices run on 5.
    """
    return Mesh(member_mesh(1, num_tasks, devices).devices[0], (TASK_AXIS,))


def member_mesh(num_members: int, num_tasks: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `MEMBER_AXIS` and `TASK_AXIS` over as many devices as both can use.

    Members need nothing of each other, tasks an all-reduce: where there is a choice, members are
    split first. 4 members of 32 tasks on 8 devices make it 4 x 2, 2 members of 25 tasks 2 x 1.

    Args:
        num_members: M, states that are trained at a time by `over_members`.
        num_tasks: T of each.
        devices: as for `task_mesh`, as are several processes.
    """
    checks.check_counts(num_members=num_members, num_tasks=num_tasks)
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        by_process.setdefault(device.process_index, []).append(device)
    most = min(len(group) for group in by_process.values())
    groups = 0
    for count in range(most, 0, -1):  # devices of each process
        groups = _member_groups(num_members, num_tasks, count * len(by_process))
        if groups:
            break
    else:  # the processes cannot share the work: each does all of it
        if jax.process_index() not in by_process:
            raise ValueError(
                f"{num_tasks} tasks cannot be split evenly over {len(by_process)} processes, and "
                "none of the devices belongs to this process."
            )
        return member_mesh(num_members, num_tasks, by_process[jax.process_index()])
    used = [device for group in by_process.values() for device in group[:count]]
    return Mesh(np.array(used).reshape(groups, -1), (MEMBER_AXIS, TASK_AXIS))


def _member_groups(num_members: int, num_tasks: int, num_devices: int) -> int:
    """The most groups of members with which all devices have the same work, or 0."""
    fitting = (
        groups
        for groups in range(min(num_members, num_devices), 0, -1)
        if num_members % groups == num_devices % groups == num_tasks % (num_devices // groups) == 0
    )
    return next(fitting, 0)


def check_mesh(mesh: Mesh, num_tasks: int) -> int:
    """The number of devices that the tasks are split between.

    Raises:
        ValueError: the mesh is no task or member mesh, or does not divide the tasks.
    """
    if mesh.axis_names not in ((TASK_AXIS,), (MEMBER_AXIS, TASK_AXIS)):
        raise ValueError(
            f"the mesh must have the axis {TASK_AXIS!r}, or {MEMBER_AXIS!r} and {TASK_AXIS!r}; "
            f"received {mesh.axis_names}."
        )
    count = mesh.shape[TASK_AXIS]
    if num_tasks % count:
        raise ValueError(
            f"the number of tasks must be a multiple of the mesh's devices; received {num_tasks} "
            f"tasks for {count} devices. task_mesh({num_tasks}) makes one that fits, or "
            "member_mesh for several members."
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
        mesh: a task or a member mesh.
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
        mesh: a task or a member mesh.
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
    """Makes leaves whole on every device, to be read; inside a program over several processes."""
    if not mesh.is_multi_process:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def bring_home(tree: PyTree) -> PyTree:
    """Copies replicated leaves of a mesh of several processes to this process; keeps others.

    Args:
        tree: arrays, typed keys among them, that are whole on every device.
    """

    def local(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                local(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(local, tree)


def on_mesh(fn: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    """`fn` on every device of a mesh, which reduces over devices itself."""
    # Replication is not tracked (check_vma): users' losses should not have to annotate what varies
    # between devices.
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def num_devices() -> int:
    """The number of devices that share the tasks; 1 outside of a program over a mesh."""
    try:
        return jax.lax.axis_size(TASK_AXIS)
    except NameError:
        return 1


def first_task(num_local_tasks: int) -> Array | int:
    """The index, among all devices' tasks, of the first task of this device."""
    return jax.lax.axis_index(TASK_AXIS) * num_local_tasks if num_devices() > 1 else 0


def sum_over_devices(values: PyTree) -> PyTree:
    """The sum of each device's values over a task mesh, by one all-reduce."""
    if num_devices() == 1:
        return values
    flat, unravel = ravel_pytree(values)
    return unravel(jax.lax.psum(flat, TASK_AXIS))


def mean_over_devices(values: PyTree) -> PyTree:
    """The mean of each device's values over a task mesh, by one all-reduce."""
    if num_devices() == 1:
        return values
    flat, unravel = ravel_pytree(values)
    return unravel(jax.lax.pmean(flat, TASK_AXIS))
