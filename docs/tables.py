"""What the site says in tables that nobody keeps up by hand: strategies from the registry, commands from their `--help`."""
import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = ROOT / "nbs/strategies/16_strategies.ipynb"
ADVICE = re.compile(r"^\| \[`(\w+)`\]\(([\w.]+)\) \|[^|]*\|([^|]*)\|([^|]*)\|$", re.M)


def advice() -> dict[str, tuple[str, str, str]]:
    "strategy → (its chapter, when to try it, its price), from the table in the chapter on strategies."
    text = "\n".join("".join(c["source"]) for c in json.loads(STRATEGIES.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
    return {name: (re.sub(r"^\d+[a-z]?_", "", chapter), when.strip(), price.strip()) for name, chapter, when, price in ADVICE.findall(text)}


def pace(made) -> str:
    "How often a strategy's teacher predicts."
    if made.refresh == "round": return f"{made.rounds} times, once a round"
    return "at every step" if made.refresh == "step" else f"every {made.refresh} steps"


def strategy_table() -> str:
    "Every registered strategy: what it is and how its teacher works as the registry has it, when to try it and what it costs as the chapter says."
    from pseudolabel_nb.strategies.strategy import strategies
    said = advice()
    if missing := strategies.keys() - said.keys() - {"supervised"}: raise SystemExit(f"error: {STRATEGIES.relative_to(ROOT)}: its last table lacks {', '.join(sorted(missing))}; add a row for each")
    rows = [f"| [{name}]({said[name][0]}) | {made.about} | {pace(made)} | {said[name][1]} | {said[name][2] or 'none'} |"
            for name, made in strategies.items() if name in said]
    head = ["## Which one?", "", f"All are measured against `supervised`: {strategies['supervised'].about}.", "",
            "| strategy | what it is | the teacher predicts | try it when | its price |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def commands() -> dict[str, str]:
    "command → the function in `cli` that it calls, from settings.ini."
    return dict(re.findall(r"^    (pseudolabel-[\w-]+) = pseudolabel_nb\.cli:(\w+)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M))


def help_of(command: str, function: str) -> str:
    "What the command prints for `--help`, 84 characters wide."
    from pseudolabel_nb import cli
    said = io.StringIO()
    with patch.object(sys, "argv", [command, "--help"]), patch.dict(os.environ, COLUMNS="84"), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        getattr(cli, function)()
    if "usage:" not in said.getvalue(): raise SystemExit(f"error: {command} --help printed no usage; see `{function}` in nbs/90_cli.ipynb")
    return said.getvalue().rstrip()


def command_pages() -> str:
    return "\n".join(f"## {command}\n\n```text\n{help_of(command, function)}\n```\n" for command, function in commands().items())
