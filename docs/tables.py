"""What the site says in tables that nobody keeps up by hand: strategies from the registry, commands from their
`--help`."""
import contextlib
import io
import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]


def pace(made) -> str:
    "How often a strategy's teacher predicts."
    if made.method.online: return "at every step"
    return (f"every {made.method.relabel_every} steps" if made.method.relabel_every
            else f"{made.rounds} times, once a round")


def strategy_table() -> str:
    """Every strategy of the package: what it is and how its teacher works, when to try it and what it costs, as its
    chapter says."""
    from pseudolabel_nb.strategies.strategy import shipped, strategies
    known = {name: made for name, made in strategies.items() if name != "supervised"}
    rows = [f"| [{name}]({shipped[name].chapter}.ipynb) | {made.about} | {pace(made)} | "
            f"{shipped[name].when} | {shipped[name].price or 'none'} |"
            for name, made in known.items()]
    head = ["## Which one?", "", f"All are measured against `supervised`: {strategies['supervised'].about}.", "",
            "| strategy | what it is | the teacher predicts | try it when | its price |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def commands() -> dict[str, str]:
    "command → the function in `cli` that it calls, from settings.ini."
    return dict(re.findall(r"^    (pseudolabel-[\w-]+) = pseudolabel_nb\.cli:(\w+)$",
                           (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M))


def help_of(command: str, function: str) -> str:
    "What the command prints for `--help`, 84 characters wide."
    from pseudolabel_nb import cli
    said = io.StringIO()
    with (patch.object(sys, "argv", [command, "--help"]), patch.dict(os.environ, COLUMNS="84"),
          contextlib.redirect_stdout(said), contextlib.suppress(SystemExit)):
        getattr(cli, function)()
    if "usage:" not in said.getvalue():
        raise SystemExit(f"error: {command} --help printed no usage; see `{function}` in nbs/90_cli.ipynb")
    return said.getvalue().rstrip()


def command_pages() -> str:
    return "\n".join(
        f"## {command}\n\n```text\n{help_of(command, function)}\n```\n" for command, function in commands().items())
