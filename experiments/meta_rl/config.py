"""Settings that all experiments of meta-reinforcement learning share, and the parts they select."""

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
    """Settings that all experiments share; defaults are those of the paper's 2D navigation."""

    methods: tuple[str, ...] = option(METHODS, "Methods to train and compare.", choices=METHODS)
    meta_steps: int = option(100, "Meta-steps of each method.", minimum=1)
    num_tasks: int = option(20, "Tasks of a meta-step.", minimum=1)
    num_episodes: int = option(20, "Episodes of a task and gradient step.", minimum=1)
    inner_steps: int = option(1, "Inner gradient steps in meta-training.", minimum=1)
    inner_lr: float = option(0.1, "Inner step size alpha.", above=0, sweep=True)
    meta_gradient: str = option(
        "reverse",
        "How to differentiate MAML's inner loop; first_order drops second derivatives.",
        choices=MODES,
    )
    meta_update: str = option(
        "trpo",
        "Outer step: TRPO, or Adam on the policy gradient or on PPO's clipped loss.",
        choices=META_UPDATES,
    )
    max_kl: float = option(
        0.01, "TRPO's bound on the mean KL divergence, nats.", above=0, sweep=True
    )
    curvature_episodes: int = option(
        0,
        "Episodes of a task for TRPO's curvature; fewer are faster, 0 takes all.",
        minimum=0,
    )
    meta_lr: float = option(1e-3, "Adam's step size; not for TRPO.", above=0, sweep=True)
    policy: str = option(
        "mlp", "Policy network: fully connected, or recurrent.", choices=("mlp", "recurrent")
    )
    hidden_sizes: tuple[int, ...] = option(
        (100, 100), "Units of each hidden layer of the mlp.", minimum=1, repeats=True
    )
    feedback: bool = option(False, "Append the last action and reward to the observations.")
    horizon: int = option(100, "Time steps of an episode.", minimum=1)
    eval_tasks: int = option(40, "Test tasks.", minimum=2)

    inner_objective: str = option(
        "likelihood",
        "Objective of the inner step: the paper's likelihood, or lvc or dice, which differ in "
        "their second derivatives.",
        choices=INNER_OBJECTIVES,
        internal=True,
    )
    discount: float = option(0.99, "Discount of rewards.", minimum=0, maximum=1, internal=True)
    gae_lambda: float = option(
        1.0,
        "Lambda of generalised advantage estimation; 1: whole returns.",
        minimum=0,
        maximum=1,
        internal=True,
    )
    products: str = option(
        "gauss_newton",
        "How TRPO computes curvature-vector products.",
        choices=PRODUCTS,
        internal=True,
    )
    num_epochs: int = option(5, "PPO: steps on the same episodes.", minimum=1, internal=True)
    clip: float = option(0.3, "PPO: bound of the likelihood ratio.", above=0, internal=True)
    num_units: int = option(64, "Units of the recurrent policy.", minimum=1, internal=True)
    task_batching: str = option(
        "auto", f"Batching of the outer step. {BATCHING_HELP}", internal=True
    )
    validate_every: int = option(10, "Meta-steps between validations.", minimum=1, internal=True)
    validation_tasks: int = option(
        20, "Validation tasks, to select parameters.", minimum=1, internal=True
    )
    eval_episodes: int = option(
        40, "Evaluation: episodes of a task and gradient step.", minimum=1, internal=True
    )
    eval_updates: int = option(4, "Evaluation: gradient steps.", minimum=1, internal=True)
    later_rate: float = option(
        0.5,
        "Evaluation: step size of gradient steps beyond --inner_steps, as a multiple of the inner "
        "step size.",
        above=0,
        internal=True,
    )
    tuning_tasks: int = option(
        20, "Tasks that select the baselines' step size.", minimum=1, internal=True
    )
    tuning_rates: tuple[float, ...] = option(
        (0.01, 0.03, 0.1, 0.3, 1.0),
        "Candidate step sizes of the baselines.",
        above=0,
        internal=True,
    )
    steps_per_call: int = option(5, "Meta-steps of one dispatch.", minimum=1, internal=True)

    def __post_init__(self):
        check_fields(self)
        parse_batching(self.task_batching)

    @property
    def trained(self) -> tuple[str, ...]:
        """The methods of the run by their names in results."""
        if self.meta_gradient != "first_order":
            return self.methods
        renamed = ("first_order" if name == "maml" else name for name in self.methods)
        return tuple(dict.fromkeys(renamed))

    @property
    def unused(self) -> dict[str, str]:
        """Step sizes that the outer step ignores, with the flag that selects it."""
        name = "meta_lr" if self.meta_update == "trpo" else "max_kl"
        return {name: f"--meta_update={self.meta_update}"}

    @property
    def batching(self) -> str | int:
        """How tasks are batched on a device, as the library's `batching`."""
        return batching_of(self.task_batching)

    @property
    def estimation(self) -> Estimation:
        """Settings of the advantage estimation."""
        return Estimation(self.discount, self.gae_lambda)

    @property
    def departures(self) -> str:
        """Added to the setting's name in results: these returns are not comparable with others."""
        policy = "" if self.policy == "mlp" else ", recurrent policy"
        return policy + (", action and reward seen" if self.feedback else "")

    def outer_loss(self, policy: Policy) -> LossFn:
        """The loss of the outer step."""
        return surrogate(policy, self.clip if self.meta_update == "ppo" else None)

    def for_policy(self, env: Environment) -> Environment:
        """The environment with the policy's observations and actions."""
        return with_feedback(env) if self.feedback else env

    def make_policy(self, env: Environment) -> Policy:
        """Makes the policy for an environment."""
        sizes = env.num_observations, env.num_actions
        if self.policy == "recurrent":
            return recurrent_policy(*sizes, self.num_units)
        return gaussian_policy(*sizes, self.hidden_sizes)


def make_problem(config: Config, env: Environment, method: str) -> ReinforcementProblem:
    """Makes the problem of a method: the oracle observes the task; baselines do not adapt."""
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
    """Makes the outer step."""
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
