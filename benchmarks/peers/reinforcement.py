r"""Compares 2D navigation in pytorch-maml-rl (tristandeleu), at its default sizes, with ours.

    PYTORCH_MAML_RL=DIR PYTORCH_MAML_RL_PYTHON=PYTHON \
        python -m benchmarks.run --suite=reinforcement_peers

DIR is a checkout of it, PYTHON an interpreter with its requirements; benchmarks/README.md describes
how to get both. A meta-iteration does the same work in both: 20 tasks, 20 episodes of 100 steps
before and after adaptation, a policy of 2 x 64 tanh, TRPO with 10 conjugate-gradient steps and at
most 15 line-search steps. Theirs multiplies with exact second derivatives on all samples. Ours
multiplies with the Gauss-Newton matrix, which is equal at the policy that acted, on all samples in
one row and on those of 5 episodes in another.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.harness import Row, summarize
from benchmarks.suites.reinforcement import SUBSAMPLE, pytorch_maml_rl_case, time_iteration
from experiments.core.process import num_cores

ITERATIONS, WARM_UP = 8, 2


def reinforcement_peers_suite() -> list[Row]:
    """Times a meta-iteration; theirs also with several threads in each process.

    Raises:
        SystemExit: the checkout or its interpreter is missing, or its run fails.
    """
    checkout = os.environ.get("PYTORCH_MAML_RL", "")
    python = os.environ.get("PYTORCH_MAML_RL_PYTHON", "")
    if not (Path(checkout) / "maml_rl").is_dir() or not Path(python).is_file():
        raise SystemExit(
            "the suite reinforcement_peers needs PYTORCH_MAML_RL, a checkout of pytorch-maml-rl, "
            "and PYTORCH_MAML_RL_PYTHON, an interpreter with its requirements; received "
            f"{checkout!r} and {python!r}. See benchmarks/README.md."
        )
    case = pytorch_maml_rl_case()
    ours = [
        time_iteration("maml_jax, curvature from all episodes", case, None),
        time_iteration(f"maml_jax, curvature from {SUBSAMPLE} of 20 episodes", case, SUBSAMPLE),
    ]
    theirs = [
        _peer(checkout, python, f"pytorch-maml-rl, {num_cores()} workers, {name}", threads)
        for name, threads in (("one thread each", "1"), ("threads as it comes", None))
    ]
    best = min(row["median_ms"] for row in theirs)
    rows = [*ours, *theirs]
    return [{**row, "times_the_fastest_peer": best / row["median_ms"]} for row in rows]


def _peer(checkout: str, python: str, name: str, threads: str | None) -> Row:
    script = Path(__file__).parent / "pytorch_maml_rl.py"
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if threads:
        variables["OMP_NUM_THREADS"] = threads
    done = subprocess.run(
        [python, str(script.resolve()), str(num_cores()), str(ITERATIONS)],
        cwd=checkout,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"pytorch-maml-rl stopped:\n{done.stderr[-2000:]}")
    seconds = json.loads(done.stdout.strip().splitlines()[-1])[WARM_UP:]
    return summarize(name, seconds)
