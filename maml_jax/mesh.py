"""Splits tasks and members of a run over devices and hosts.

A mesh has the axis "tasks", or the axes "members" and "tasks". One all-reduce per meta-step sums
over tasks; members do not communicate.
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
    """Makes a mesh with the axis `TASK_AXIS` over as many devices as divide T evenly.

    In a run of several processes (`jax.distributed`) every process contributes the same number of
    devices. If no such number divides T, the mesh has the devices of this process only, and all
    processes do the same work.

    Args:
        num_tasks: T.
        devices: candidates; default `jax.devices()`. The mesh uses the largest number of them that
            divides T: 5 of 8 devices for 25 tasks.

    Example:
        >>> from maml_jax import task_mesh
        >>> mesh = task_mesh(num_tasks=32)
        >>> mesh.axis_names, 32 % mesh.size
        (('tasks',), 0)
    """
    return Mesh(member_mesh(1, num_tasks, devices).devices[0], (TASK_AXIS,))


def member_mesh(num_members: int, num_tasks: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh with the axes `MEMBER_AXIS` and `TASK_AXIS` over as many devices as possible.

    Splits members before tasks, because members do not communicate. On 8 devices, 4 members of 32
    tasks give a 4 x 2 mesh, and 2 members of 25 tasks a 2 x 1 mesh. Handles several processes as
    `task_mesh` does.

    Args:
        num_members: M, the number of states that `over_members` trains together.
        num_tasks: T of each member.
        devices: candidates; default `jax.devices()`.

    Raises:
        TypeError: a count is not an integer.
        ValueError: a count is below 1, or the devices belong to other processes only.

    Example:
        >>> from maml_jax import member_mesh
        >>> mesh = member_mesh(num_members=4, num_tasks=32)
        >>> mesh.axis_names, 4 % mesh.shape["members"]
        (('members', 'tasks'), 0)
    """
    checks.check_counts(num_members=num_members, num_tasks=num_tasks)
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        by_process.setdefault(device.process_index, []).append(device)
    most = min(len(group) for group in by_process.values())
    groups = 0
    for count in range(most, 0, -1):  # devices per process
        groups = _member_groups(num_members, num_tasks, count * len(by_process))
        if groups:
            break
    else:  # no even split: each process does all the work
        if jax.process_index() not in by_process:
            raise ValueError(
                f"{num_tasks} tasks cannot be split evenly over {len(by_process)} processes, and "
                "none of the devices belongs to this process."
            )
        return member_mesh(num_members, num_tasks, by_process[jax.process_index()])
    used = [device for group in by_process.values() for device in group[:count]]
    return Mesh(np.array(used).reshape(groups, -1), (MEMBER_AXIS, TASK_AXIS))


def _member_groups(num_members: int, num_tasks: int, num_devices: int) -> int:
    """Returns the largest number of member groups that loads all devices equally, or 0."""
    fitting = (
        groups
        for groups in range(min(num_members, num_devices), 0, -1)
        if num_members % groups == num_devices % groups == num_tasks % (num_devices // groups) == 0
    )
    return next(fitting, 0)


def check_mesh(mesh: Mesh, num_tasks: int) -> int:
    """Returns the number of devices that share the tasks.

    Raises:
        ValueError: the mesh has other axes, or does not divide the tasks evenly.
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
            f"tasks for {count} devices. Use task_mesh({num_tasks}), or member_mesh for several "
            "members."
        )
    return count


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every leaf to every device of the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.mesh import replicate, task_mesh
        >>> replicate(jnp.ones(3), task_mesh(2)).is_fully_replicated
        True
    """
    return place(tree, mesh, PartitionSpec())


def split_tasks(tasks: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of all leaves over the devices of the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.mesh import split_tasks, task_mesh
        >>> mesh = task_mesh(2)
        >>> len(split_tasks(jnp.ones((2, 3)), mesh).addressable_shards) == mesh.size
        True
    """
    return place(tasks, mesh, PartitionSpec(TASK_AXIS))


def place(tree: PyTree, mesh: Mesh, specs: Any) -> PyTree:
    """Places a tree on the devices of the mesh; does not copy leaves that are in place already.

    On a mesh of several processes, all processes must call this function with the same values.

    Args:
        tree: arrays and typed keys.
        mesh: a task or member mesh.
        specs: a `PartitionSpec` for all leaves, or a pytree prefix of `tree` with such specs.
    """
    shardings = _shardings(mesh, specs)
    if not mesh.is_multi_process:
        return jax.device_put(tree, shardings)
    shardings = jax.tree.broadcast(shardings, tree)
    return jax.tree.map(_place_between_processes, tree, shardings)


def shapes(tree: PyTree, mesh: Mesh, specs: Any) -> PyTree:
    """Returns a `jax.ShapeDtypeStruct` for every leaf, sharded as by `place`, to compile with.

    Args:
        tree: arrays, or other leaves with a shape and a dtype.
        mesh: a task or member mesh.
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
    """Replicates leaves on a mesh of several processes; for use inside a compiled program."""
    if not mesh.is_multi_process:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def bring_home(tree: PyTree) -> PyTree:
    """Copies replicated leaves of a mesh of several processes to this process; keeps others.

    Args:
        tree: replicated arrays and typed keys.
    """

    def local(x: Any) -> Any:
        # A tracer, for example under vmap, has no place yet.
        if isinstance(x, Tracer) or not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                local(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(local, tree)


def on_mesh(fn: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    """Maps `fn` over the devices of a mesh; `fn` itself reduces over devices."""
    # check_vma would require annotations of device-varying values in users' losses.
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def num_devices() -> int:
    """Returns the number of devices that share the tasks; 1 outside `on_mesh`."""
    try:
        return jax.lax.axis_size(TASK_AXIS)
    except NameError:
        return 1


def first_task(num_local_tasks: int) -> Array | int:
    """Returns the index of this device's first task in the meta-batch."""
    return jax.lax.axis_index(TASK_AXIS) * num_local_tasks if num_devices() > 1 else 0


def sum_over_devices(values: PyTree) -> PyTree:
    """Sums values over the devices of a task mesh, by one all-reduce."""
    if num_devices() == 1:
        return values
    flat, unravel = ravel_pytree(values)
    return unravel(jax.lax.psum(flat, TASK_AXIS))


def mean_over_devices(values: PyTree) -> PyTree:
    """Averages values over the devices of a task mesh, by one all-reduce."""
    if num_devices() == 1:
        return values
    flat, unravel = ravel_pytree(values)
    return unravel(jax.lax.pmean(flat, TASK_AXIS))
