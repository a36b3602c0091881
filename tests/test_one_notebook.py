"""A strategy, a method, a loss or a network is one module and no other edit: written in a temporary folder, it runs,
resumes and is listed."""
import subprocess
import sys

import pytest
from conftest import ROOT

CHAPTER = """
import math
from dataclasses import dataclass

import torch
from torch import nn

from pseudolabel_nb.core.bounds import bounded
from pseudolabel_nb.models.networks import register_network
from pseudolabel_nb.strategies.methods import Method
from pseudolabel_nb.strategies.mixing import register_mixing
from pseudolabel_nb.strategies.strategy import Strategy, register_strategy
from pseudolabel_nb.strategies.threshold import EveryPixel
from pseudolabel_nb.training.augmentation import register_augmentation
from pseudolabel_nb.training.losses import register_loss

register_loss("plain_ce")(nn.CrossEntropyLoss())

@register_network("thin")
def thin(channels, n_classes):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, n_classes, 3, padding=1))

@register_mixing("swap")
def swap(labeled, pseudo, rng):
    return labeled, pseudo._replace(images=pseudo.images.flip(-1), target=pseudo.target.flip(-1))

@register_augmentation("brighter")
def brighter(image, rng): return image + 0.1 * rng.standard_normal()

@dataclass(frozen=True)
class Adapting(Method):
    "Hard labels above a threshold that follows the teacher."
    weight: float = bounded(1.0, ge=0, lt=math.inf)
    online = True
    views = ("brighter",)
    state = {"threshold": 0.5}

    def loss(self, step, batch):
        probs = step.teacher(batch.weak)
        step.state["threshold"].lerp_(probs.amax(1).mean().expand(2), 0.1)
        pseudo = step.pseudo_label(batch.unlabeled, probs)
        pseudo = pseudo._replace(weight=pseudo.weight * (probs.amax(1) >= step.state["threshold"][0]))
        on_labeled, on_unlabeled = step.student(batch.labeled.images, pseudo.images)
        return step.loss(on_labeled, batch.labeled) + self.weight * step.loss(on_unlabeled, pseudo, "plain_ce")

register_strategy(
    Strategy("adapting", EveryPixel(), Adapting(), rounds=1, about="a threshold that follows the teacher"))
"""


def command(*argv) -> subprocess.CompletedProcess:
    said = [
        sys.executable, "-c", "import sys; from pseudolabel_nb.cli import train; sys.exit(train())", *map(str, argv)]
    return subprocess.run(said, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def chapter(tmp_path):
    (tmp_path / "adapting.py").write_text(CHAPTER)
    return tmp_path / "adapting.py"


def test_it_is_listed(chapter):
    done = command("--plugin", chapter, "--list-strategies")
    assert done.returncode == 0 and "a threshold that follows the teacher" in done.stdout, done.stderr


def test_it_runs_and_resumes_with_its_state(chapter, tmp_path):
    "Killed in the middle, it ends with the numbers of an unbroken run: what adapts is saved."
    code = f"""
import sys
sys.path.insert(0, {str(chapter.parent)!r}); sys.path.insert(0, {str(ROOT / "tests")!r})
import adapting, torch
import pseudolabel_nb as pnb
from conftest import discs
from pseudolabel_nb.training import loop
torch.set_num_threads(1)
data = pnb.Data("discs", discs(12, 0), discs(6, 1), discs(6, 2))
settings = pnb.Settings(steps=24, batch_size=2, crop=16, network="thin", evaluations=3, checkpoint_every=5)
options = dict(labeled_ratio=0.34, settings=settings, device="cpu")
run = lambda folder: pnb.run(data, pnb.strategy("adapting", method__weight=0.5), folder, **options)
whole, honest, steps = run({str(tmp_path / "whole")!r}), loop.Trainer.train_step, iter(range(18))
def dying(trainer, batch):
    if next(steps, None) is None: raise KeyboardInterrupt
    return honest(trainer, batch)
loop.Trainer.train_step = dying
try: run({str(tmp_path / "cut")!r})
except KeyboardInterrupt: pass
loop.Trainer.train_step = honest
cut = run({str(tmp_path / "cut")!r})
assert next(steps, None) is None
assert [(r.f1, r.kept) for r in cut.records()] == [(r.f1, r.kept) for r in whole.records()]
assert cut.strategy == whole.strategy and cut.strategy.method.weight == 0.5
print(whole.result["f1"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and 0 <= float(done.stdout.split()[-1]) <= 1, done.stderr
