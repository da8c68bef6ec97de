"""Times meta-iterations of pytorch-maml-rl, under its Python and in its checkout.

`benchmarks.peers.reinforcement` starts this script, which imports nothing of this repository. It
restores `torch.lstsq`, which the baseline calls and PyTorch has removed, so that the checkout needs
no change.
"""

# pyright: basic, reportMissingImports=false

import json
import sys
import time


def main(workers: int, iterations: int) -> list[float]:
    """Returns the seconds of each meta-iteration of 2D navigation, warm-up included.

    Args:
        workers: processes that sample episodes.
        iterations: number of meta-iterations.
    """
    import torch
    import yaml

    torch.lstsq = lambda b, a: (torch.linalg.lstsq(a, b).solution, None)

    import gym
    import maml_rl.envs  # noqa: F401  # registers the environments
    from maml_rl.baseline import LinearFeatureBaseline
    from maml_rl.metalearners import MAMLTRPO
    from maml_rl.samplers import MultiTaskSampler
    from maml_rl.utils.helpers import get_input_size, get_policy_for_env

    with open("configs/maml/2d-navigation.yaml") as file:
        config = yaml.safe_load(file)
    torch.manual_seed(0)
    make = {"env_kwargs": config["env-kwargs"]}
    env = gym.make(config["env-name"], **config["env-kwargs"])
    policy = get_policy_for_env(env, config["hidden-sizes"], config["nonlinearity"])
    policy.share_memory()
    sampler = MultiTaskSampler(
        config["env-name"],
        batch_size=config["fast-batch-size"],
        policy=policy,
        baseline=LinearFeatureBaseline(get_input_size(env)),
        env=env,
        seed=0,
        num_workers=workers,
        **make,
    )
    learner = MAMLTRPO(policy, fast_lr=config["fast-lr"], first_order=False, device="cpu")
    settings = ("max-kl", "cg-iters", "cg-damping", "ls-max-steps", "ls-backtrack-ratio")
    sampling = ("num-steps", "fast-lr", "gamma", "gae-lambda")
    seconds = []
    for _ in range(iterations):
        begun = time.perf_counter()
        tasks = sampler.sample_tasks(num_tasks=config["meta-batch-size"])
        futures = sampler.sample_async(
            tasks, device="cpu", **{name.replace("-", "_"): config[name] for name in sampling}
        )
        learner.step(*futures, **{name.replace("-", "_"): config[name] for name in settings})
        sampler.sample_wait(futures)
        seconds.append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    sys.path.insert(0, ".")
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))), flush=True)
    import multiprocessing
    import os

    # The library's workers do not always stop, and keep the pipe to the parent process open.
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)
