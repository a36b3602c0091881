"Run folders written by hand, for tests and benchmarks of what reads them."
import json
from pathlib import Path


def config(strategy: str = "naive", seed: int = 0, ratio: float = 0.05, data: str = "micrographs", rate: float = 0.003,
           **student) -> dict:
    "As `begin` writes it."
    selector = None if strategy == "supervised" else dict(
        kind="ClassBalanced", foreground=0.6, background=0.8, ratio=2.0, tolerance=0.1)
    return dict(data=data, classes=["background", "particle"], n_classes=2, channels=1, read=[f"{data}: masks"],
                labeled_ratio=ratio, seed=seed,
                strategy=dict(kind="Strategy", name=strategy, selector=selector, schedule=dict(kind="Constant"),
                              teacher=dict(kind="Teacher", flips=False, members=1),
                              method=dict(dict(kind="SelfTraining", weight=1.0, paired=False), **student), rounds=3,
                              prior=None, about="a line of prose"),
                settings=dict(kind="Settings", steps=400, learning_rate=rate, batch_size=4, network="unet",
                              network_options=dict(widths=[8, 16])))


def line(number: int, f1: float, accepted: bool = True) -> dict:
    "A line of rounds.jsonl."
    return dict(kind="RoundRecord", round=number, steps=100, f1=f1, precision=f1, recall=f1, threshold=0.4,
                accepted=accepted, checkpoint=f"checkpoints/round-{number}.safetensors", seconds=10.0,
                ratio_labeled=0.04, thresholds=[0.8, 0.6] if number else [], n_pseudo=24 if number else 0,
                kept=[900, 40] if number else [], ratio_pseudo=0.042 if number else None, verdict="", warning="")


def write_run(folder: Path, f1: float = 0.7, rounds: int = 4, finished: bool = True, error: str = "",
              metrics: bool = True, counts: list | None = None, **options) -> Path:
    "A run folder, written by hand, so that what reads it is tested against the files and not against what writes them."
    folder.mkdir(parents=True)
    c = config(**options)
    ids = [f"{k}.png" for k in range(len(counts or [0]))]
    (folder / "config.json").write_text(json.dumps(c))
    (folder / "split.json").write_text(json.dumps(dict(labeled=[f"{c['seed']}.png"], val=["v.png"], test=ids)))
    (folder / "rounds.jsonl").write_text(
        "".join(json.dumps(line(k, f1 - 0.01 * (rounds - k))) + "\n" for k in range(rounds)))
    if metrics:
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(dict(round=k, member=0, step=s, loss=0.5, f1=f1 - 0.001 * s, precision=f1, recall=f1,
                                    threshold=0.4, predicted=0.04)) + "\n" for k in range(rounds) for s in (50, 100)))
    if counts: (folder / "test_counts.json").write_text(json.dumps(counts))
    if error: (folder / "error.json").write_text(json.dumps(dict(error=error, when="2025-01-31 12:00")))
    if finished:
        (folder / "result.json").write_text(json.dumps(dict(f1=f1, precision=f1 - 0.1, recall=f1 + 0.1, best_round=3)))
    return folder
