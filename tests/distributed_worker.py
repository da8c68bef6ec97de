"""Runs one of several processes for test_distributed: trains in float64, stops, resumes.

    python distributed_worker.py PORT PROCESSES PROCESS DIRECTORY STEPS

The caller sets JAX_ENABLE_X64 and JAX_NUM_CPU_DEVICES. The process trains from the newest
checkpoint in DIRECTORY to meta-step STEPS and saves. Process 0 writes the parameters and the losses
of an evaluation to DIRECTORY/STEPS.npz.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.core.checkpoints import Checkpoints, to_host
from maml_jax import (
    Task,
    adaptation_curve,
    gradient_update,
    init,
    make_evaluate_fn,
    make_train_fn,
    member_mesh,
    meta_loss,
    over_members,
    task_mesh,
)
from maml_jax.classification import (
    CLASS_SPECS,
    ImageSet,
    classification_problem,
    draw_episodes,
    split_classes,
)
from maml_jax.networks import fully_connected

TASKS = 12
network = fully_connected((6, 6, 1), 3, (8,))
optimizer = optax.adam(1e-2, eps=1e-3)  # the default would amplify rounding errors


def update_of(inner_loss, **inner):
    """Makes MAML's update for an inner loss."""
    return gradient_update(functools.partial(meta_loss, inner_loss, **inner), optimizer)


def image_set():
    """Makes 10 classes of 5 random images."""
    rng = np.random.Generator(np.random.PCG64(0))
    images = rng.integers(0, 256, (10, 5, 6, 6, 1), dtype=np.uint8)
    return ImageSet(images, np.full(10, 5, np.int32))


def train(state, count, spread):
    """Trains for `count` meta-steps, with all images on every device or spread over the devices."""
    problem = classification_problem(network, 3, 1, 2, class_axis="tasks" if spread else None)
    step = make_train_fn(
        problem.sample,
        update_of(problem.inner_loss, inner_lr=0.3, mask=network.mask),
        num_tasks=TASKS,
        num_meta_steps=count,
        data_specs=(CLASS_SPECS if spread else PartitionSpec(),),
    )
    images = split_classes(image_set(), task_mesh(TASKS).size) if spread else image_set()
    return step(state, images)[0]


def train_members():
    """Trains two seeds of a linear model, on separate groups of devices if possible."""
    sample = lambda params, key: Task(*jax.random.normal(key, (2, 3), jnp.float64))
    loss = lambda params, batch: (jnp.mean((batch - params) ** 2), {})
    mesh = member_mesh(2, TASKS)
    assert mesh.is_multi_process == (jax.process_count() > 1), mesh
    update = update_of(loss, inner_lr=0.1)
    step = over_members(make_train_fn(sample, update, num_tasks=TASKS, num_meta_steps=3, mesh=mesh))
    states = [init(jnp.zeros(3, jnp.float64), update, seed) for seed in (0, 1)]
    states, *_ = step(jax.tree.map(lambda *x: jnp.stack(x), *states))
    return step(states)[0].params


def start():
    """Returns the state at step 0, in float64."""
    params = network.init(jax.random.key(0))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    return init(params, update_of(None), 1)


def outcome(state):
    """Returns parameters and losses of an evaluation by name."""
    problem = classification_problem(network, 3, 1, 2)
    episodes = draw_episodes(problem.sample, jax.random.key(5), jax.device_put(image_set()), TASKS)
    curve = functools.partial(
        adaptation_curve, problem.inner_loss, num_inner_steps=2, mask=network.mask
    )
    evaluate = make_evaluate_fn(curve)
    losses = evaluate(state.params, episodes, 0.3).per_task["loss"]
    return {
        **to_host(state.params),
        "losses": np.asarray(losses),
        "members": np.asarray(train_members()),
    }


def main(port, processes, process, directory, steps):
    if int(processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    state = start()
    store = Checkpoints(Path(directory) / "checkpoints")
    restored = store.restore(lambda: state, warn=print)
    if restored is not None:
        state = restored.state
    missing = int(steps) - int(state.step)
    state = train(train(state, missing - 2, spread=False), 2, spread=True)
    store.save(int(steps), state, {})
    leaves = outcome(state)
    if jax.process_index() == 0:
        np.savez(Path(directory) / f"{steps}.npz", **leaves)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
