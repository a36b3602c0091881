"""The notebook that `write_report` runs, from its chapter: without the made-up runs, without outputs.

    python tools/report_template.py
"""
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = (
    ROOT / "nbs/experiments/03a_report_template.ipynb", ROOT / "pseudolabel_nb/experiments/report_template.ipynb")


def packaged(notebook: dict) -> dict:
    "The cell that makes up runs, the only hidden one, becomes the cell that names the folder."
    hidden = [cell for cell in notebook["cells"] if "".join(cell["source"]).startswith("#| hide")]
    if len(hidden) != 1:
        raise SystemExit(f"error: {SOURCE.name} has {len(hidden)} hidden cells; expected one, that of the made-up runs")
    hidden[0]["source"] = ['folder = "." # with runs at or below it']
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code": cell.update(outputs=[], execution_count=None)
    return notebook


if __name__ == "__main__":
    notebook = packaged(json.loads(SOURCE.read_text(encoding="utf-8")))
    TARGET.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
