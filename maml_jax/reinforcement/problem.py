"""Meta-reinforcement learning as a problem for the core: collect, then replay.

`sample` collects everything with gradients stopped: episodes of theta, an inner step, episodes of
the adapted parameters. The losses see only what was recorded; `meta_loss` differentiates the
recomputed adaptation. A rollout is never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from maml_jax import checks, maml, types
from maml_jax.networks import Policy
from maml_jax.reinforcement import advantages as advantages_lib
from maml_jax.reinforcement.checks import check_environment, check_number
from maml_jax.reinforcement.environment import Environment
from maml_jax.reinforcement.objectives import Samples, inner_objective, surrogate
from maml_jax.reinforcement.rollout import Trajectories, rollout
from maml_jax.types import Array, Params, Problem, PyTree, Task

# Others have no forward derivative, which TRPO's products need, or save memory that is not short.
MODES = ("reverse", "first_order")


class Estimation(NamedTuple):
    """How advantages are estimated from recorded episodes.

    What a time limit cut off counts as 0, as in the original code: the linear baseline, fitted to
    returns that end there, knows no value of it.

    Attributes:
        discount: gamma, from 0 to 1.
        gae_lambda: of generalised advantage estimation, from 0 to 1; 1 for the whole return.
        use_baseline: whether to subtract the linear feature baseline.
        normalize: whether advantages of a task get mean 0 and deviation 1.
        advantages: the estimator, of the first five arguments of
            `advantages.generalized_advantages`.
    """

    discount: float = 0.99
    gae_lambda: float = 1.0
    use_baseline: bool = True
    normalize: bool = True
    advantages: Callable[..., Array] = advantages_lib.generalized_advantages


def check_estimation(estimation: Estimation) -> None:
    """Raises a ValueError or TypeError that names the first field that is out of range."""
    if not isinstance(estimation, Estimation):
        raise TypeError(f"estimation must be an Estimation; received {estimation!r}.")
    for name in ("discount", "gae_lambda"):
        check_number(name, getattr(estimation, name), "from 0 to 1", lambda x: 0 <= x <= 1)


def to_samples(trajectories: Trajectories, estimation: Estimation = Estimation()) -> Samples:  # noqa: B008
    """Fits the baseline to the episodes of one task, and estimates their advantages by it.

    Advantages are 0 where the episodes say nothing about actions (`advantages.has_signal`): what a
    baseline or a normalisation would make of their rounding is no direction to go. Plain returns,
    without either, stay as they are. Episodes that blew up count as `advantages.credited` says.

    Raises:
        ValueError: a discount or lambda outside 0 to 1, episodes of several tasks, or an estimator
            whose advantages have another shape.
        TypeError: `estimation` is no `Estimation`.
    """
    t, how = trajectories, estimation
    check_estimation(how)
    if t.rewards.ndim != 2:
        raise ValueError(
            "to_samples takes the episodes of one task, rewards of shape (H, E); received "
            f"{t.rewards.shape}. Put it under jax.vmap for several tasks."
        )
    rewards = advantages_lib.credited(t.rewards, t.alive, t.nonfinite, how.discount)
    returns = advantages_lib.discounted_returns(rewards, how.discount)
    explained, values = jnp.zeros(()), jnp.zeros_like(rewards)
    if how.use_baseline:
        baseline = advantages_lib.fit_baseline(t.observations, returns, t.alive)
        explained = baseline.explained_variance
        values = advantages_lib.predict(baseline, t.observations)
    advantages = how.advantages(rewards, values, t.alive, how.discount, how.gae_lambda)
    if jnp.shape(advantages) != rewards.shape:
        raise ValueError(
            f"Estimation.advantages must return the shape of the rewards, {rewards.shape}; "
            f"received {jnp.shape(advantages)}."
        )
    if how.normalize:
        advantages = advantages_lib.normalized(advantages, t.alive)
    if how.normalize or how.use_baseline:
        signal = advantages_lib.has_signal(rewards, t.alive, how.discount)
        advantages = jnp.where(signal, advantages, 0.0)
    metrics = {
        "return": jnp.mean(t.returns),
        "explained_variance": explained,
        "alive": jnp.mean(t.alive.astype(t.rewards.dtype)),
        "nonfinite": jnp.mean(t.nonfinite.astype(t.rewards.dtype)),
    }
    return Samples(t.observations, t.actions, advantages, t.alive, t.distribution, metrics)


class ReinforcementProblem(NamedTuple):
    """What a policy is to learn in a family of tasks; from `reinforcement_problem`.

    Its functions, those of a `Problem` and the recorded adaptation, are made of its fields when
    they are called: a field that is replaced (`problem._replace(num_steps=2)`) holds everywhere.
    The losses follow from policy and objective, and are not fields.

    Attributes:
        env: the family of tasks.
        policy: the policy.
        num_episodes: E.
        num_steps: S.
        inner_lr: alpha.
        objective: of the inner step.
        estimation: of the advantages.
        mask: which parameters are adapted.
        mode: how the adaptation is differentiated.
    """

    env: Environment
    policy: Policy
    num_episodes: int
    num_steps: int
    inner_lr: maml.InnerRate
    objective: str
    estimation: Estimation
    mask: maml.Mask
    mode: str

    @property
    def inner_loss(self) -> types.LossFn:
        """Of one inner step, `inner_loss(params, samples)`."""
        return inner_objective(self.policy, self.objective)

    @property
    def outer_loss(self) -> types.LossFn:
        """Minus the likelihood-ratio surrogate, `outer_loss(params, samples)`."""
        return surrogate(self.policy)

    @property
    def as_problem(self) -> Problem:
        """The four functions that the core knows."""
        return Problem(self.init, self.sample, self.inner_loss, self.outer_loss)

    def init(self, key: Array) -> Params:
        """Parameters of the policy."""
        return self.policy.init(key)

    def sample(self, params: Params, key: Array) -> Task:
        """Episodes of one new task, before and after each inner step.

        Returns:
            A task whose support is samples with a leading axis of S, one set for each inner step,
            and whose query is samples of the adapted parameters.
        """
        params = jax.lax.stop_gradient(params)
        task_key, *keys = jax.random.split(key, self.num_steps + 2)
        task = self.env.sample_task(task_key)
        loss = self.inner_loss
        rates, constant = maml._split_rates(self.inner_lr, self.num_steps)

        # One loop, the query's turn included, so that the environment is compiled once: physics
        # takes most of the time that compiling takes. What the last turn adapts is not used.
        def turn(adapted: Params, inputs: tuple[Array, Any]) -> tuple[Params, Samples]:
            turn_key, rate = inputs
            samples = self._collect(adapted, task, turn_key)
            rate = constant if rates is None else rate
            new, _ = maml.inner_update(loss, adapted, samples, rate, mask=self.mask, mode=self.mode)
            return new, samples

        _, collected = jax.lax.scan(turn, params, (jnp.stack(keys), one_turn_more(rates)))
        support = jax.tree.map(lambda x: x[: self.num_steps], collected)
        query = jax.tree.map(lambda x: x[self.num_steps], collected)
        return jax.lax.stop_gradient(Task(support, query))

    def adapt(self, params: Params, task: Task) -> Params:
        """The recorded adaptation, recomputed."""
        adapted, _ = maml.adapt(
            self.inner_loss,
            params,
            task.support,
            self.inner_lr,
            self.num_steps,
            mask=self.mask,
            mode=self.mode,
            batch_per_step=True,
        )
        return adapted

    def adapted_distribution(self, params: Params, task: Task) -> PyTree:
        """The adapted policy's distributions at the query's states, leaves [H, E, ...]."""
        return self.policy.unroll(self.adapt(params, task), task.query.observations)

    def _collect(self, params: Params, task: PyTree, key: Array) -> Samples:
        episodes = rollout(self.env, self.policy, params, task, key, self.num_episodes)
        samples = to_samples(episodes, self.estimation)
        slope = jax.grad(self.inner_loss, has_aux=True)(params, samples)[0]
        metrics = {**samples.metrics, "gradient_norm": jnp.linalg.norm(ravel_pytree(slope)[0])}
        return samples._replace(metrics=metrics)


def one_turn_more(rates: PyTree) -> PyTree:
    """Rates of each step, with a leading axis, and 0 for a turn whose update is not used."""
    pad = lambda r: jnp.concatenate([r, jnp.zeros((1, *r.shape[1:]), r.dtype)])  # noqa: E731
    return jax.tree.map(pad, rates)


def reinforcement_problem(
    env: Environment,
    policy: Policy,
    *,
    num_episodes: int,
    num_steps: int = 1,
    inner_lr: maml.InnerRate = 0.1,
    objective: str = "likelihood",
    estimation: Estimation = Estimation(),  # noqa: B008
    mask: maml.Mask = None,
    mode: str = "reverse",
) -> ReinforcementProblem:
    """MAML for policies (paper section 4.2, Algorithm 3).

    Args:
        env: the family of tasks.
        policy: that fits it.
        num_episodes: E, episodes of each inner step and of the outer one.
        num_steps: S, inner steps, each on new episodes; 0 trains one policy for all tasks.
        inner_lr: alpha, as in `maml.adapt`: a number, a pytree prefix of the parameters, or rates
            for each step, [S] or `maml.PerStep`.
        objective: of the inner step, a name in `objectives.INNER_OBJECTIVES`.
        estimation: of the advantages.
        mask: which parameters are adapted, as in `maml.adapt`.
        mode: how the adaptation is differentiated, a name in `MODES`.

    Raises:
        ValueError: a count below 1, an unknown objective or mode, a discount or lambda outside 0 to
            1, rates or a mask that do not fit the policy's parameters; or the environment or the
            policy is not what it should be, see `check_environment`.
        TypeError: `num_steps` is not an int, or as `check_environment`.
    """
    num_steps = checks.check_num_inner_steps(num_steps)
    checks.check_counts(num_episodes=num_episodes)
    checks.check_choice(mode, MODES, "mode")
    check_estimation(estimation)
    check_environment(env, policy)
    problem = ReinforcementProblem(
        env, policy, num_episodes, num_steps, inner_lr, objective, estimation, mask, mode
    )
    _check_inner_step(problem)
    return problem


def _check_inner_step(problem: ReinforcementProblem) -> None:
    """Raises what `maml.adapt` raises of rates and mask; traced, on a loss that costs nothing."""
    _ = problem.inner_loss  # an unknown objective
    params = jax.eval_shape(problem.init, jax.random.key(0))

    def adapt(params: Params) -> Params:
        loss = lambda p, batch: (jnp.sum(ravel_pytree(p)[0]), {})  # noqa: E731
        return maml.adapt(loss, params, (), problem.inner_lr, problem.num_steps, mask=problem.mask)

    jax.eval_shape(adapt, params)
