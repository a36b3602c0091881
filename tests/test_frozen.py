"""Short runs of every strategy end with the scores, and where the machine computes alike with the weights, that they
had before methods were rewritten (frozen_scores.json was made by the code of before)."""
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import pseudolabel_nb as pnb
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.models.checkpoints import load_tensors
from pseudolabel_nb.models.networks import register_network
from pseudolabel_nb.strategies.positive_unlabeled import PositiveUnlabeled
from pseudolabel_nb.strategies.reliable import ReliableImages
from pseudolabel_nb.strategies.self_training import SelfTraining
from pseudolabel_nb.strategies.strategy import Strategy, strategies, strategy
from pseudolabel_nb.strategies.threshold import ClassThresholds

FROZEN = json.loads((ROOT / "tests" / "frozen_scores.json").read_text())
ALIKE = FROZEN["made_on"] == dict(torch=torch.__version__, instructions=torch.backends.cpu.get_cpu_capability())
pytestmark = pytest.mark.usefixtures("one_thread")

ANEW = SelfTraining(paired=True, ramp_up=0.5, relabel_every=4)
PASTED = SelfTraining(paired=True, mixing="paste", view="strong")
MADE = dict(
    labels_anew=lambda: Strategy("labels_anew", ClassThresholds(0.5, 0.5), ANEW, rounds=2),
    by_confidence=lambda: strategy("naive", method__by_confidence=True, rounds=2),
    pretraining=lambda: strategy("fixmatch", teacher__pretraining=0.5),
    flips=lambda: strategy("fixmatch", teacher__flips=True),
    snapshots=lambda: strategy("ensemble", rounds=2, teacher__source="snapshots", teacher__members=2),
    unanimous=lambda: strategy("ensemble", rounds=2, teacher__members=2, teacher__combine="unanimous"),
    reliable=lambda: Strategy("reliable", ReliableImages(), rounds=2),
    restart=lambda: strategy("class_balanced", rounds=2, start="restart"),
    both=lambda: strategy("copy_paste", method__cutmix=True),
    paste_self=lambda: strategy("class_balanced", rounds=1, method=PASTED),
    pooled_strong=lambda: strategy("class_balanced", rounds=1, method=SelfTraining(view="strong", mixing="cutmix")),
    pu_ge=lambda: strategy("pu", rounds=2, teacher__method=PositiveUnlabeled("ge_binomial")),
    pu_partly=lambda: strategy("pu", rounds=2, prior=0.05, annotations="partial"),
    pu_student=lambda: strategy("pu", rounds=2, prior=0.05, annotations="partial", method=PositiveUnlabeled()),
    any_turns=lambda: strategy("best", method__rotations="any"),
)


def made(name: str) -> Strategy:
    if name in MADE: return MADE[name]()
    return replace(strategies[name], rounds=min(strategies[name].rounds, 2))


@register_network("frozen")
def network(channels: int, n_classes: int) -> nn.Module:
    "A small network with batch statistics and dropout."
    first = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    whole = nn.Sequential(first, nn.Dropout2d(0.2), nn.Conv2d(6, n_classes, 3, padding=1))
    whole.encoder_features = [first]
    return whole


def discs(n: int, seed: int, size: int = 48):
    "Noisy images, each with a disc."
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]
    images, masks = [], []
    for _ in range(n):
        mask = (np.hypot(x - rng.uniform(6, size - 6), y - rng.uniform(6, size - 6)) < 5).astype("u1")
        masks.append(mask)
        images.append((mask + 0.5 * rng.standard_normal(mask.shape)).astype("f4"))
    return from_arrays(images, masks)


def digest(path) -> str:
    tensors, found = load_tensors(path)[0], hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", FROZEN["strategies"])
def test_a_short_run_ends_as_it_did(name, tmp_path):
    then, data = FROZEN["strategies"][name], pnb.Data("two", discs(12, 0), discs(6, 1), discs(6, 2))
    settings = pnb.Settings(steps=24, batch_size=2, crop=32, network="frozen", evaluations=3, checkpoint_every=5)
    run = pnb.run(data, made(name), tmp_path, labeled_ratio=0.34, settings=settings, device="cpu")
    f1 = [r.f1 for r in run.records()]
    if not ALIKE: return np.testing.assert_allclose([*f1, run.result["f1"]], [*then["f1"], then["test"]], atol=0.05)
    assert (f1, run.result["f1"]) == (then["f1"], then["test"])
    assert [list(r.kept) for r in run.records()] == then["kept"]
    assert [digest(tmp_path / r.checkpoint) for r in run.records()] == then["weights"]
