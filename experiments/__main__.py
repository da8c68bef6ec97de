"""The command `maml-jax`: trains the paper's experiments and reports on runs.

maml-jax sinusoid --workdir=DIR --preset=quick
maml-jax sinusoid --help
maml-jax report DIR...
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "sinusoid": "regress sinusoids from a few points (section 5.1)",
    "omniglot": "classify characters from a few images (section 5.2)",
    "mini_imagenet": "classify photographs from a few images (section 5.2)",
    "images": "classify images from a folder, or of any of these data sets",
    "navigation": "find a goal on the plane (section 5.3)",
    "locomotion": "make a half-cheetah or an ant run (section 5.3; needs maml-jax[rl])",
    "report": "print tables and draw figures of finished runs",
}


def main() -> None:
    """Runs the command that the command line names with the rest of the line."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "-help", "help"):
        print(_help())
    elif name in ("--version", "-version"):
        import maml_jax

        print(f"maml-jax {maml_jax.__version__}")
    elif name not in COMMANDS:
        print(f"error: no command {name!r}; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    else:
        del sys.argv[1]
        try:
            runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # while modules are imported; later the command handles it
            print("\nstopped.", file=sys.stderr)
            sys.exit(130)


def _help() -> str:
    listed = "\n".join(f"  {name:<15}{text}" for name, text in COMMANDS.items())
    return (
        "Model-agnostic meta-learning: the experiments of Finn, Abbeel, Levine 2017.\n\n"
        "usage: maml-jax EXPERIMENT --workdir=DIR [--preset=NAME] [--SETTING=VALUE ...]\n"
        "       maml-jax report DIR... [--figure=FILE.png]\n\n"
        f"{listed}\n\n"
        "maml-jax EXPERIMENT --help lists the settings of an experiment.\n"
        "Start with: maml-jax sinusoid --preset=quick --workdir=runs/sinusoid"
    )


if __name__ == "__main__":
    main()
