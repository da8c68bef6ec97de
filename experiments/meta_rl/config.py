"""Settings that every experiment of meta-reinforcement learning has, and what they make."""

from __future__ import annotations

import dataclasses

import optax

from maml_jax.networks import Policy, gaussian_policy, recurrent_policy
from maml_jax.reinforcement import (
    Environment,
    Estimation,
    ReinforcementProblem,
    informed,
    reinforcement_problem,
    surrogate,
    surrogate_update,
    trpo,
    with_feedback,
)
from maml_jax.reinforcement.objectives import INNER_OBJECTIVES
from maml_jax.reinforcement.problem import MODES
from maml_jax.reinforcement.trust_region import PRODUCTS
from maml_jax.types import LossFn, MetaUpdate

from ..core.config import (
    BATCHING_HELP,
    ConfigError,
    batching_of,
    check_fields,
    option,
    parse_batching,
)

METHODS = ("maml", "first_order", "pretrained", "random", "oracle")
ADAPTED = ("maml", "first_order")
META_UPDATES = ("trpo", "policy_gradient", "ppo")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that every experiment has; defaults are the paper's 2D navigation."""

    methods: tuple[str, ...] = option(METHODS, "Methods to train and compare.", choices=METHODS)
    meta_steps: int = option(100, "Meta-steps of each method.", minimum=1)
    num_tasks: int = option(20, "Tasks of a meta-step.", minimum=1)
    num_episodes: int = option(20, "Episodes of a task and gradient step.", minimum=1)
    inner_steps: int = option(1, "Inner gradient steps in meta-training.", minimum=1)
    inner_lr: float = option(0.1, "Inner step size alpha.", above=0, sweep=True)
    meta_gradient: str = option(
        "reverse",
        "How MAML's inner loop is differentiated. first_order is another method.",
        choices=MODES,
    )
    meta_update: str = option(
        "trpo", "Outer step: TRPO, policy gradient by Adam, clipped.", choices=META_UPDATES
    )
    max_kl: float = option(
        0.01, "TRPO's bound on the mean KL divergence, nats.", above=0, sweep=True
    )
    curvature_episodes: int = option(
        0,
        "Episodes of a task that TRPO's curvature is estimated from, fewer are faster; 0 for all.",
        minimum=0,
    )
    meta_lr: float = option(
        1e-3, "Step size of Adam, if that is the outer step.", above=0, sweep=True
    )
    policy: str = option(
        "mlp", "The policy: fully connected, or with a memory.", choices=("mlp", "recurrent")
    )
    hidden_sizes: tuple[int, ...] = option(
        (100, 100), "Layers of the mlp.", minimum=1, repeats=True
    )
    feedback: bool = option(False, "Append the last action and reward to observations.")
    horizon: int = option(100, "Time steps of an episode.", minimum=1)
    eval_tasks: int = option(40, "Test tasks.", minimum=2)

    inner_objective: str = option(
        "likelihood",
        "Of the inner step: the paper's, or one with a better second derivative.",
        choices=INNER_OBJECTIVES,
        internal=True,
    )
    discount: float = option(0.99, "Of rewards.", minimum=0, maximum=1, internal=True)
    gae_lambda: float = option(
        1.0,
        "Of generalised advantage estimation; 1: whole returns.",
        minimum=0,
        maximum=1,
        internal=True,
    )
    products: str = option(
        "gauss_newton", "TRPO's curvature products.", choices=PRODUCTS, internal=True
    )
    num_epochs: int = option(5, "Clipped steps on the same episodes.", minimum=1, internal=True)
    clip: float = option(0.3, "Bound of the clipped likelihood ratio.", above=0, internal=True)
    num_units: int = option(64, "Size of the recurrent policy's memory.", minimum=1, internal=True)
    task_batching: str = option("auto", f"Of the outer step. {BATCHING_HELP}", internal=True)
    validate_every: int = option(10, "Meta-steps between validations.", minimum=1, internal=True)
    validation_tasks: int = option(20, "To choose the parameters by.", minimum=1, internal=True)
    eval_episodes: int = option(
        40, "Episodes of a task and update in evaluation.", minimum=1, internal=True
    )
    eval_updates: int = option(4, "Gradient updates of the evaluation.", minimum=1, internal=True)
    later_rate: float = option(
        0.5,
        "Step size of updates after those of meta-training in evaluation, as a multiple.",
        above=0,
        internal=True,
    )
    tuning_tasks: int = option(
        20, "Tasks to tune the baselines' step size on.", minimum=1, internal=True
    )
    tuning_rates: tuple[float, ...] = option(
        (0.01, 0.03, 0.1, 0.3, 1.0), "Step sizes tried for baselines.", above=0, internal=True
    )
    steps_per_call: int = option(5, "Meta-steps of one dispatch.", minimum=1, internal=True)

    def __post_init__(self):
        check_fields(self)
        parse_batching(self.task_batching)

    @property
    def trained(self) -> tuple[str, ...]:
        """The methods of the run, as results name them."""
        if self.meta_gradient != "first_order":
            return self.methods
        renamed = ("first_order" if name == "maml" else name for name in self.methods)
        return tuple(dict.fromkeys(renamed))

    @property
    def unused(self) -> dict[str, str]:
        """The step sizes that the outer step does not have, with the flag that says so."""
        name = "meta_lr" if self.meta_update == "trpo" else "max_kl"
        return {name: f"--meta_update={self.meta_update}"}

    @property
    def batching(self) -> str | int:
        """How the core batches tasks on a device."""
        return batching_of(self.task_batching)

    @property
    def estimation(self) -> Estimation:
        """How advantages are estimated."""
        return Estimation(self.discount, self.gae_lambda)

    @property
    def departures(self) -> str:
        """What results add to the setting's name, so that others are not compared with it."""
        policy = "" if self.policy == "mlp" else ", recurrent policy"
        return policy + (", action and reward seen" if self.feedback else "")

    def outer_loss(self, policy: Policy) -> LossFn:
        """Of the outer step."""
        return surrogate(policy, self.clip if self.meta_update == "ppo" else None)

    def for_policy(self, env: Environment) -> Environment:
        """The environment with what the policy is to see, and to act on."""
        return with_feedback(env) if self.feedback else env

    def make_policy(self, env: Environment) -> Policy:
        """The policy for an environment."""
        sizes = env.num_observations, env.num_actions
        if self.policy == "recurrent":
            return recurrent_policy(*sizes, self.num_units)
        return gaussian_policy(*sizes, self.hidden_sizes)


def make_problem(config: Config, env: Environment, method: str) -> ReinforcementProblem:
    """What a method trains on: the oracle sees the task, and some do not adapt."""
    env = config.for_policy(informed(env) if method == "oracle" else env)
    policy = config.make_policy(env)
    try:
        return reinforcement_problem(
            env,
            policy,
            num_episodes=config.num_episodes,
            num_inner_steps=config.inner_steps if method in ADAPTED else 0,
            inner_lr=config.inner_lr,
            objective=config.inner_objective,
            outer_loss=config.outer_loss(policy),
            estimation=config.estimation,
            mode="first_order" if method == "first_order" else "reverse",
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def make_meta_update(config: Config, problem: ReinforcementProblem) -> MetaUpdate:
    """The outer step."""
    if config.meta_update == "trpo":
        return trpo(
            problem,
            max_kl=config.max_kl,
            products=config.products,
            product_episodes=config.curvature_episodes or None,
            batching=config.batching,
        )
    return surrogate_update(
        problem,
        optax.adam(config.meta_lr),
        num_epochs=config.num_epochs if config.meta_update == "ppo" else 1,
        batching=config.batching,
    )
