"""The meta-iteration: draw tasks, roll out, adapt, roll out again, update; one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from maml_jax import batching as tasks_lib
from maml_jax import checks, types
from maml_jax.evaluation import Evaluation, summarize
from maml_jax.maml import PerStep, inner_update
from maml_jax.networks import Policy
from maml_jax.reinforcement.environment import Environment
from maml_jax.reinforcement.meta_updates import MetaUpdate
from maml_jax.reinforcement.objectives import inner_objective
from maml_jax.reinforcement.problem import (
    Estimation,
    ReinforcementProblem,
    check_estimation,
    one_turn_more,
    to_samples,
)
from maml_jax.reinforcement.rollout import Trajectories, rollout
from maml_jax.training import MetaState, TrainFn, nonfinite_report, on_every_device
from maml_jax.types import Array, Metrics, NonFiniteError, Params, PyTree, Task

WARN_SHARE = 0.05  # of episodes that blew up


def make_iterate_fn(
    problem: ReinforcementProblem,
    meta_update: MetaUpdate,
    *,
    num_tasks: int,
    num_steps: int = 1,
    mesh: Mesh | None = None,
) -> TrainFn:
    """Compiles meta-iterations into one dispatch; nothing leaves the device in between.

    Each device of the mesh collects and differentiates its own tasks. Which tasks and episodes are
    drawn depends on the state's key, the iteration and the task's index alone.

    Args:
        problem: from `reinforcement_problem`.
        meta_update: from `trpo` or `gradient_steps`; `maml_jax.init` takes it as its optimizer.
        num_tasks: T, tasks of a meta-iteration.
        num_steps: iterations of one dispatch.
        mesh: a mesh with the axis "tasks", or with "seeds" and "tasks" where `maml_jax.over_seeds`
            follows; default `task_mesh(num_tasks)`.

    Returns:
        `iterate(state) -> (state, metrics)`, metrics with a leading axis of `num_steps`: those of
        the update; "before" and "after", the means over tasks of `Samples.metrics` before the
        first inner step and after the last one; "loss", minus the return after adaptation; and
        "nonfinite_tasks", "first_nonfinite_task", "nonfinite_update" for `maml_jax.check_finite`.
        It donates `state`.

    Raises:
        ValueError: a count below 1, or a mesh that does not fit; in a call, a state whose
            parameters or optimizer state are of another kind.
        TypeError: `meta_update` is no `MetaUpdate`.
    """
    checks.check_counts(num_tasks=num_tasks, num_steps=num_steps)
    if not isinstance(meta_update, MetaUpdate):
        raise TypeError(
            "meta_update must be a MetaUpdate, from trpo or gradient_steps(problem, optimizer); "
            f"received {type(meta_update).__name__}."
        )
    mesh = tasks_lib.task_mesh(num_tasks) if mesh is None else mesh
    num_devices = tasks_lib.check_mesh(mesh, num_tasks)
    local_tasks = num_tasks // num_devices

    def check_state(state: MetaState) -> None:
        params = jax.eval_shape(problem.init, jax.random.key(0))
        checks.check_fits(
            "state.params", params, state.params, "They must be of the problem's policy."
        )
        optimizer_state = jax.eval_shape(meta_update.init, state.params)
        advice = "Make the state by maml_jax.init(params, meta_update, key) with this meta_update."
        checks.check_fits("state.optimizer_state", optimizer_state, state.optimizer_state, advice)

    def one(state: MetaState, _: None) -> tuple[MetaState, Metrics]:
        first = jax.lax.axis_index(tasks_lib.TASK_AXIS) * local_tasks
        step_key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, first + jnp.arange(local_tasks))
        tasks = jax.vmap(problem.sample, (None, 0))(state.params, keys)
        params, optimizer_state, metrics = meta_update.update(
            state.params, state.optimizer_state, tasks, num_devices
        )
        report = _report(metrics, tasks, params, first, num_tasks, num_devices)
        return MetaState(params, optimizer_state, state.step + 1, state.key), report

    def iterate(state: MetaState, data: tuple[()]) -> tuple[MetaState, Metrics]:
        check_state(state)
        return jax.lax.scan(one, state, length=num_steps)

    return on_every_device(iterate, mesh)


def _report(
    metrics: Metrics, tasks: Task, params: Params, first: Array, num_tasks: int, num_devices: int
) -> Metrics:
    after = tasks.query.metrics
    before = jax.tree.map(lambda s, q: s[:, 0] if s.shape[1] else q, tasks.support.metrics, after)
    means = tasks_lib.mean_over_tasks({"before": before, "after": after}, num_devices)
    losses = ~jnp.isfinite(metrics.pop("losses"))
    local = jnp.stack([losses, losses | metrics.pop("nonfinite", False)]).astype(jnp.float32)
    everyone = jnp.zeros((2, num_tasks)).at[:, first + jnp.arange(losses.size)].set(local)
    if num_devices > 1:
        everyone = jax.lax.psum(everyone, tasks_lib.TASK_AXIS)
    gradient = metrics.get("gradient_norm", 0.0)
    return {
        **metrics,
        **means,
        "loss": -means["after"]["return"],
        **nonfinite_report(everyone[0] > 0, everyone[1] > 0, gradient, params),
    }


def check_episodes(metrics: Metrics) -> str | None:
    """Raises if no episode of an iteration was sound. Reads the metrics back to the host.

    Returns:
        A warning for the user if in an iteration `WARN_SHARE` of the episodes or more blew up, long
        before all do; else None.

    Raises:
        NonFiniteError: the environment returned a number that is not finite in every episode.
    """
    warning, highest = None, WARN_SHARE
    for when in ("before", "after"):
        share = float(np.max(np.asarray(metrics[when]["nonfinite"])))
        if share >= 1.0:
            raise NonFiniteError(
                f"every episode {when} adaptation met an observation or a reward that is not "
                "finite, so nothing can be learned. Look at the environment's reset and step: a "
                "reward that is NaN from the first step, or physics that blows up at once."
            )
        if share >= highest:
            highest = share
            warning = (
                f"{100 * share:.3g} % of the episodes {when} adaptation blew up: they met an "
                "observation or a reward that is not finite. Each counts as an episode of nothing "
                "but the worst reward. Look at the actions that the environment can take, and at "
                "the step sizes."
            )
    return warning


class Returns(NamedTuple):
    """What adaptation on new tasks achieves.

    Attributes:
        evaluation: of the metrics "return" (mean over episodes of `Trajectories.returns`) and
            "nonfinite" (share of episodes that blew up), each [T, U + 1] by task.
        trajectories: of every task after each update, leaves [T, U + 1, H, E, ...], if asked for.
    """

    evaluation: Evaluation
    trajectories: Trajectories | None


def make_evaluate_fn(
    env: Environment,
    policy: Policy,
    *,
    num_episodes: int,
    objective: str = "likelihood",
    estimation: Estimation = Estimation(),  # noqa: B008
    mask: Any = None,
    keep_trajectories: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[Params, PyTree, Array, Array], Returns]:
    """Compiles the evaluation of a policy on given tasks: U updates, new episodes for each.

    Args:
        env: the family of tasks.
        policy: that is adapted.
        num_episodes: E, of each update and of the last judgement.
        objective: of the updates, a name in `objectives.INNER_OBJECTIVES`.
        estimation: of the advantages.
        mask: which parameters are adapted, as in `maml.adapt`.
        keep_trajectories: whether to return all episodes, for figures.
        mesh: a mesh with the one axis "tasks"; default one that fits the tasks of each call.

    Returns:
        `evaluate(params, tasks, key, rates) -> Returns`: tasks with a leading axis of T; rates, the
        step size of each update, [U], or `maml_jax.maml.PerStep` with a leading axis of U.

    Raises:
        ValueError: `num_episodes` below 1, an unknown objective, a discount or lambda outside 0 to
            1; in a call, parameters, tasks, rates or a mesh that do not fit, or an environment and
            a policy that do not (`check_environment`).
        TypeError: `estimation` is no `Estimation`.
    """
    checks.check_counts(num_episodes=num_episodes)
    check_estimation(estimation)
    inner_loss = inner_objective(policy, objective)

    def one(params: Params, task: PyTree, key: Array, rates: Array) -> Any:
        def turn(params: Params, own: tuple[Array, Array]) -> tuple[Params, Any]:
            update, rate = own
            episodes = jax.random.fold_in(key, update)
            t = rollout(env, policy, params, task, episodes, num_episodes)
            samples = to_samples(t, estimation)
            adapted, _ = inner_update(inner_loss, params, samples, rate, mask=mask)
            seen = {"return": jnp.mean(t.returns), "nonfinite": jnp.mean(t.nonfinite, dtype=float)}
            return adapted, (seen, t if keep_trajectories else None)

        # One loop, so that the environment is compiled once; the last turn's update is not used.
        rates = one_turn_more(rates)
        turns = jnp.arange(jax.tree.leaves(rates)[0].shape[0])
        return jax.lax.scan(turn, params, (turns, rates))[1]

    def many(params: Params, tasks: PyTree, keys: Array, rates: Array) -> Any:
        return jax.vmap(one, (None, 0, 0, None))(params, tasks, keys, rates)

    def evaluate(params: Params, tasks: PyTree, key: Array, rates: Array | PerStep) -> Returns:
        num_tasks = tasks_lib.axis_size(tasks)
        task = jax.eval_shape(env.sample_task, jax.random.key(0))
        advice = "Tasks are what vmap of the environment's sample_task returns."
        checks.check_fits("tasks", task, tasks, advice, lead=1)
        expected = jax.eval_shape(policy.init, jax.random.key(0))
        checks.check_fits("params", expected, params, "They must be of the policy.")
        used = tasks_lib.task_mesh(num_tasks) if mesh is None else mesh
        tasks_lib.check_mesh(used, num_tasks)
        keys = jax.random.split(key, num_tasks)
        params, rates = tasks_lib.replicate((params, _rates_of_updates(rates)), used)
        tasks, keys = tasks_lib.split_tasks((tasks, keys), used)
        found = compiled(used)(params, tasks, keys, rates)
        return tasks_lib.bring_home(tasks_lib.settle(found, used))

    programs: dict[Mesh, Any] = {}

    def compiled(used: Mesh) -> Any:
        if used not in programs:
            whole, split = PartitionSpec(), PartitionSpec(tasks_lib.TASK_AXIS)
            specs = (whole, split, split, whole)
            sharded = jax.shard_map(
                many, mesh=used, in_specs=specs, out_specs=split, check_vma=False
            )

            def judge(*arguments: Any) -> Returns:
                metrics, trajectories = tasks_lib.gather(sharded(*arguments), used)
                return Returns(summarize(metrics), trajectories)

            programs[used] = jax.jit(judge)
        return programs[used]

    return evaluate


def _rates_of_updates(rates: Array | PerStep) -> PyTree:
    """As float arrays with the same leading axis of U."""
    bare = not isinstance(rates, PerStep)
    tree = jnp.asarray(rates) if bare else jax.tree.map(jnp.asarray, rates.rates)
    tree = jax.tree.map(lambda r: r if types.is_float(r) else r.astype(float), tree)
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
    if (bare and len(shapes[0]) != 1) or len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(
            "rates must be the step size of each update, an array of shape (U,), or "
            f"maml.PerStep with a leading axis of U on every leaf; received shapes {shapes}."
        )
    return tree
