"""`--help` by groups of flags, and errors of the command line as one sentence with exit code 2."""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

RUN, SETTINGS, HOSTS = "the run", "settings of the experiment", "several hosts"
HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "-?", "--?")


HIDDEN = "Has no effect in this experiment."  # help text of flags that `--help` leaves out


def fail(message: str) -> NoReturn:
    """Prints an error and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[list[str]], Any], groups: Sequence[str]) -> None:
    """Parses the flags, then runs `main(arguments)`, as `absl.app.run` does.

    Args:
        main: receives the program and the arguments that are not flags.
        groups: `module_name` of the flags that `--help` lists, in this order.
    """
    app.run(main, flags_parser=lambda argv: parse(argv, groups))


def parse(argv: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Parses the flags of a command line; prints the help if it asks for it.

    Returns:
        The program and the arguments that are not flags.

    Raises:
        SystemExit: after the help (0), or an error (2).
    """
    values = flags.FLAGS
    before_end = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(argument in HELP for argument in before_end):
        print(describe(groups))
        sys.exit(0)
    try:
        return values(argv)
    except flags.UnrecognizedFlagError as error:
        fail(_unknown(error.flagname, groups))
    except (flags.Error, ValueError) as error:
        fail(_illegal(str(error)))


def describe(groups: Sequence[str]) -> str:
    """Describes the program and its flags, by group, in the order of their definition."""
    parts = [(sys.modules["__main__"].__doc__ or "").strip()]
    for group in groups:
        shown = _shown(group)
        if shown:
            parts.append("\n".join([f"{group}:", *map(_entry, shown)]))
    return "\n\n".join(parts)


def _shown(group: str) -> list[Any]:
    """Lists the flags of a group that `--help` shows."""
    every = flags.FLAGS.flags_by_module_dict().get(group, ())
    return [flag for flag in every if flag.help != HIDDEN]


def _entry(flag: Any) -> str:
    text = flag.help.partition(";\n")[0]  # absl adds a line to the help of --set
    if flag.boolean:
        name = f"--[no]{flag.name}"
        text += f" Default: {str(flag.default).lower()}."
    else:
        default = (flag.default_as_str or "").strip("'")
        name = f"--{flag.name}" + (f"={default}" if default not in ("", "[]") else "")
    lines = []
    for paragraph in text.split("\n"):  # a line of --set is a name
        indent = " " * (len(paragraph) - len(paragraph.lstrip()))
        lines += textwrap.wrap(
            paragraph.strip(),
            88,
            initial_indent=f"      {indent}",
            subsequent_indent=f"      {indent}{'    ' if indent else ''}",
            break_on_hyphens=False,
        )
    return "\n".join([f"  {name}", *lines])


def _unknown(name: str, groups: Sequence[str]) -> str:
    known = [flag.name for group in groups for flag in _shown(group)]
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean --{similar[0]}?" if similar else "--help lists the flags."
    return f"no flag --{name}; {hint}"


def _illegal(message: str) -> str:
    """Rewords an error of absl's parser."""
    missing = re.fullmatch(r"Missing value for flag -{1,2}(\w+)", message)
    if missing:
        return f"--{missing[1]} needs a value: --{missing[1]}=VALUE."
    illegal = re.fullmatch(r"flag --(\w+)=(.*?): .*", message, re.DOTALL)
    if not illegal or illegal[1] not in flags.FLAGS:
        return message
    name, value = illegal[1], illegal[2]
    flag = flags.FLAGS[name]
    expected = "true or false" if flag.boolean else flag.parser.syntactic_help
    expected = re.sub(r"in the range \[(\S+), (\S+)\]", r"from \1 to \2", expected)
    return f"--{name} must be {expected}; received {value!r}."
