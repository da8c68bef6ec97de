"""Meta-reinforcement learning: impossible arguments and mismatched parts are refused."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import PerStep, init, make_evaluate_fn, make_train_fn
from maml_jax.networks import (
    Categorical,
    categorical_policy,
    gaussian_policy,
    memoryless_policy,
    mlp,
    recurrent_policy,
)
from maml_jax.reinforcement import (
    Environment,
    Estimation,
    State,
    adaptation_returns,
    check_environment,
    informed,
    navigation,
    reinforcement_problem,
    rollout,
    surrogate,
    surrogate_update,
    to_samples,
    trpo,
)
from maml_jax.reinforcement.tabular import Tables, bandit, expected_return, tabular

KEY = jax.random.key(0)
ENV, POLICY = navigation(horizon=3), gaussian_policy(2, 2, (4,))
NAN = math.nan


def problem_of(**options):
    return reinforcement_problem(ENV, POLICY, **{"num_episodes": 2, **options})


PROBLEM = problem_of()


def refused(call, message, error=ValueError):
    with pytest.raises(error, match=message):
        call()


def play(**options):
    given = {"policy": POLICY, "task": jnp.ones(2), "num_episodes": 2, **options}
    return rollout(ENV, given["policy"], given["policy"].init(KEY), given["task"], KEY,
                   given["num_episodes"])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_episodes": 0}, "num_episodes must be 1 or more; received 0"),
        ({"num_inner_steps": -1}, "num_inner_steps must be 0 or more.*received -1"),
        ({"objective": "reinforce"}, "must be one of 'likelihood'.*received 'reinforce'"),
        ({"mode": "mixed"}, "mode must be one of 'reverse', 'first_order'; received 'mixed'"),
        ({"mode": "remat"}, "mode must be one of"),
        ({"inner_lr": PerStep(jnp.ones(3))}, r"rates.*num_inner_steps=1.*received shape \(3,\)"),
        ({"inner_lr": jnp.ones(1)}, r"PerStep\(rates\); received an array of shape \(1,\)"),
        ({"inner_lr": {"mean": 0.1}}, "inner_lr must be a number, a pytree prefix of params"),
        ({"mask": {"mean": True}}, "mask must be a pytree prefix of params"),
        ({"mask": lambda params: 1.0}, "mask must hold Python bools only"),
        *[
            ({"estimation": Estimation(discount=value)}, "discount must be a number from 0 to 1")
            for value in (-0.1, 1.01, NAN, math.inf, "0.9", None, True)
        ],
        ({"estimation": Estimation(gae_lambda=1.5)}, "gae_lambda must be a number from 0 to 1"),
    ],
)
def test_problems(options, message):
    refused(lambda: problem_of(**options), message)


def test_estimation_is_an_estimation():
    refused(lambda: problem_of(estimation=0.99), "estimation must be an Estimation", TypeError)
    t = jax.jit(play)()
    refused(lambda: to_samples(t, Estimation(NAN)), "discount must be .*; received nan")
    several = jax.tree.map(lambda x: x[None], t)
    refused(lambda: to_samples(several), r"one task, rewards of shape \(H, E\); received \(1, 3")
    total = Estimation(advantages=lambda r, v, alive, discount, lam: jnp.sum(r))
    refused(lambda: to_samples(t, total), r"Estimation.advantages must return the shape.*\(3, 2\)")
    traced = jax.jit(lambda discount: to_samples(t, Estimation(discount)).advantages)
    known = jax.jit(lambda: to_samples(t, Estimation(0.5)).advantages)
    np.testing.assert_allclose(traced(0.5), known(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_kl": 0.0}, "max_kl must be a number above 0 and finite; received 0.0"),
        ({"max_kl": NAN}, "max_kl must be a number above 0"),
        ({"damping": -1.0}, "damping must be a number of 0 or more"),
        ({"shrink": 1.0}, "shrink must be a number between 0 and 1; received 1.0"),
        ({"tries": 0}, "tries must be 1 or more"),
        ({"conjugate_steps": 0}, "conjugate_steps must be 1 or more"),
        ({"product_episodes": 0}, "product_episodes must be 1 or more"),
        ({"products": "fisher"}, "products must be one of"),
        ({"batching": "loop"}, "batching must be None, 'vmap', 'scan'"),
    ],
)
def test_trpo(options, message):
    refused(lambda: trpo(PROBLEM, **options), message)


def test_surrogates():
    adam = optax.adam(1e-3)
    refused(lambda: surrogate_update(PROBLEM, adam, num_epochs=0), "num_epochs must be 1 or more")
    refused(lambda: surrogate(POLICY, 0.0), "clip must be a number above 0")
    refused(lambda: surrogate(POLICY, NAN), "clip must be a number above 0")
    refused(lambda: surrogate_update(PROBLEM, 1e-3), "optimizer must be an optax", TypeError)
    for make in (trpo, lambda problem: surrogate_update(problem, adam)):
        refused(lambda m=make: m(PROBLEM.as_problem), "come from reinforcement_problem", TypeError)
        of_batch = PROBLEM._replace(outer_loss=lambda params, samples: (samples.advantages, {}))
        state = init(PROBLEM.init(KEY), make(of_batch), 0)
        train = make_train_fn(of_batch.sample, make(of_batch), num_tasks=1, num_meta_steps=1)
        refused(lambda t=train, s=state: t.lower(s), "outer_loss must return a scalar loss")


def test_states_of_another_structure():
    policy = gaussian_policy(2, 2, (5,))
    adam = surrogate_update(PROBLEM, optax.adam(1e-3))
    train = make_train_fn(PROBLEM.sample, adam, num_tasks=1, num_meta_steps=1)
    other = init(PROBLEM.init(KEY), trpo(PROBLEM), 0)
    refused(lambda: train.lower(other), "state.update_state must have the structure.*init")
    for update in (adam, trpo(PROBLEM)):
        # `sample` acts with these parameters, which have the right structure and other sizes.
        train = make_train_fn(PROBLEM.sample, update, num_tasks=1, num_meta_steps=1)
        other = init(policy.init(KEY), update, 0)
        message = r"state.params\['mean'\].* must have shape \(4,\).*\(5,\)"
        tasks = jax.eval_shape(jax.vmap(PROBLEM.sample, (None, 0)), PROBLEM.init(KEY), KEY[None])
        step = lambda s, t, u=update: u.update(s.params, s.update_state, t)
        refused(lambda s=step, o=other, t=tasks: jax.eval_shape(s, o, t), message)


def test_rollouts():
    refused(lambda: play(num_episodes=0), "num_episodes must be 1 or more")
    refused(lambda: play(task=jnp.ones(3)), r"task must have shape \(2,\); received \(3,\)")
    refused(lambda: play(task={"goal": jnp.ones(2)}), "task must have the structure")
    refused(lambda: play(policy=gaussian_policy(2, 3, (4,))), r"shape \(2,\).*received \(3,\)")
    discrete = categorical_policy(2, 2, (4,))
    refused(lambda: play(policy=discrete), r"continuous actions of shape \(2,\); received int32")


def test_evaluations():
    def evaluate(params=None, tasks=None, inner_lr=0.1, num_updates=2, **options):
        params = POLICY.init(KEY) if params is None else params
        tasks = jnp.ones((3, 2)) if tasks is None else tasks
        returns = functools.partial(adaptation_returns, PROBLEM, num_updates=num_updates, **options)
        return make_evaluate_fn(returns)(params, (tasks, jax.random.split(KEY, 3)), inner_lr)

    refused(lambda: evaluate(num_episodes=0), "num_episodes must be 1 or more")
    refused(lambda: evaluate(num_updates=-1), "must be 0 or more")
    refused(lambda: evaluate(inner_lr=jnp.ones((2, 2))), r"PerStep\(rates\)")
    for rates in (jnp.ones(3), {"mean": jnp.ones(2), "log_std": jnp.ones(3)}):
        refused(lambda r=rates: evaluate(inner_lr=PerStep(r)), "leading axis of num_inner_steps=2")
    refused(lambda: evaluate(tasks=jnp.ones((3, 4))), r"task must have shape \(2,\).*\(4,\)")
    refused(lambda: evaluate(tasks={"goal": jnp.ones((3, 2))}), "task must have the structure")
    other = gaussian_policy(2, 2, (5,)).init(KEY)
    refused(lambda: evaluate(params=other), r"params\['mean'\].*\(4,\)")


def test_sizes_of_policies_and_environments():
    for make in (gaussian_policy, categorical_policy, recurrent_policy):
        refused(lambda m=make: m(2, 0), "must be 1 or more; received")
        refused(lambda m=make: m(0, 2), "must be 1 or more; received")
    refused(lambda: recurrent_policy(2, 2, 0), "num_units must be 1 or more")
    refused(lambda: gaussian_policy(2, 2, 64), "hidden_sizes must be a sequence", TypeError)
    for std in (0.0, NAN, math.inf):
        refused(lambda s=std: gaussian_policy(2, 2, initial_std=s), "initial_std must be above")
    refused(lambda: navigation(horizon=0), "horizon must be 1 or more")
    refused(lambda: bandit(0), "num_actions must be 1 or more")
    tables = Tables(jnp.ones((2, 3)), jnp.ones((2, 2, 3)), jnp.ones(2))
    refused(
        lambda: tabular(lambda key: tables, 2, 3, 1),
        r"Tables.transitions must have shape \(2, 3, 2\); received \(2, 2, 3\)",
    )
    one = bandit(2).sample_task(KEY)
    normal = gaussian_policy(1, 2, (2,))
    refused(
        lambda: expected_return(normal, normal.init(KEY), one, 1), "Categorical actions", TypeError
    )
    for field, value in (("num_observations", 0), ("num_actions", -1), ("horizon", 0)):
        bad = ENV._replace(**{field: value})
        refused(lambda b=bad: check_environment(b), f"{field} must be 1 or more")


def discrete_environment(step):
    def reset(key, task):
        return State(jnp.ones(1), jnp.zeros(()), jnp.zeros((), bool), task)

    return Environment(lambda key: jnp.arange(3.0), reset, step, 1, 3, 2, lambda task: task)


def test_discrete_environments_are_checked_without_a_policy():
    check_environment(bandit(3))
    check_environment(discrete_environment(lambda s, a: s._replace(reward=s.inner[a])))
    # This reward would have 3 elements if the action had shape [3].
    by_value = lambda s, a: s._replace(reward=jnp.where(a == 0, 1.0, 0.0))
    check_environment(discrete_environment(by_value))
    wrong = discrete_environment(lambda s, a: s._replace(reward=s.inner[a][None]))
    with pytest.raises(ValueError, match=r"neither continuous.*nor discrete.*must have shape"):
        check_environment(wrong)


def test_mismatched_actions():
    several = memoryless_policy(POLICY.init, lambda p, x: Categorical(jnp.zeros((*x.shape, 5))))
    with pytest.raises(
        ValueError, match=r"one at a time, integers of shape \(\); received.*\(2,\)"
    ):
        check_environment(ENV, several)
    four = categorical_policy(1, 4, (2,))
    with pytest.raises(ValueError, match=r"between the environment's 3 actions.*\(4,\)"):
        check_environment(bandit(3), four)  # the fourth action would become the third
    with pytest.raises(ValueError, match=r"continuous actions of shape \(2,\)"):
        check_environment(ENV, categorical_policy(2, 2, (4,)))  # would move both coordinates
    with pytest.raises(ValueError, match="step failed on an action of type float32"):
        check_environment(bandit(2), gaussian_policy(1, 2, (2,)))
    with pytest.raises(TypeError, match=r"policy must be a Policy .*; received Network"):
        check_environment(ENV, mlp(2, 2))
    with pytest.raises(ValueError, match="does not take the environment's observations of 2"):
        check_environment(ENV, recurrent_policy(3, 2, 4))
    counts = POLICY._replace(act=lambda p, x, m: (POLICY.act(p, x, m)[0], jnp.zeros(2)))
    with pytest.raises(ValueError, match="the memory that act returns must have the structure"):
        check_environment(ENV, counts)


def test_images_must_be_flattened():
    def reset(key, task):
        return State(jnp.zeros((8, 8, 3)), jnp.zeros(()), jnp.zeros((), bool), ())

    images = ENV._replace(reset=reset, num_observations=192)
    expected = re.escape("reset: observation must have shape (192,); received (8, 8, 3).")
    with pytest.raises(ValueError, match=expected + ".*flatten images"):
        check_environment(images)
    with pytest.raises(ValueError, match=expected):
        reinforcement_problem(images, gaussian_policy(192, 2, (4,)), num_episodes=2)


def test_an_oracle_needs_a_vector():
    for features in (lambda task: task[0], lambda task: {"goal": task}):
        bad = ENV._replace(task_features=features)
        with pytest.raises(ValueError, match="task_features must return one vector"):
            informed(bad)
