"""Picks: matched one to one, found in masks, streamed from large micrographs, written for other programs, and gone on
with after a kill."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pseudolabel_nb as pnb
from pseudolabel_nb import cli
from pseudolabel_nb.core import monitor
from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.coordinates import Picks, read_coordinates
from pseudolabel_nb.data.coordinates_out import (
    FORMATS, area_codes, path_for, write_coco, write_coordinates, write_mask, write_probabilities)
from pseudolabel_nb.data.images import ImageSet, Item, from_arrays
from pseudolabel_nb.data.synthetic import micrographs, true_picks
from pseudolabel_nb.experiments.picking import ALL_FORMATS, pick_images
from pseudolabel_nb.inference.picks import estimate_diameter, find_particles, find_picks, separate
from pseudolabel_nb.inference.streaming import stream_predictions, tile_margin, tile_places
from pseudolabel_nb.measures.particles import (
    FALSE, HIT, LEFT_OUT, best_particle_threshold, match_picks, one_to_one, particle_curve, particle_scores,
    particle_table)
from pseudolabel_nb.models.networks import build_network

# ---- one to one

def every_pairing(picks, particles, distance) -> tuple[int, float]:
    "Most pairs, and the smallest sum of distances of so many, by trying all."
    d = np.linalg.norm(picks[:, None] - particles[None], axis=-1)
    d = np.concatenate([np.where(d <= distance, d, np.inf), np.full((len(picks), len(picks)), np.inf)], 1)
    tried = (d[range(len(picks)), list(p)] for p in set(permutations(range(d.shape[1]), len(picks))))
    return max(((int(np.isfinite(t).sum()), -float(t[np.isfinite(t)].sum())) for t in tried), default=(0, -0.0))

points = lambda most: st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=most).map(
    lambda p: np.array(p, float).reshape(-1, 2))

@settings(max_examples=200, deadline=None)
@given(points(4), points(4), st.sampled_from([1.5, 3.0, 5.0]))
def test_as_many_pairs_and_as_near_as_brute_force_finds(picks, particles, distance):
    pairs = one_to_one(picks, particles, distance)
    d = np.linalg.norm(picks[pairs[:, 0]] - particles[pairs[:, 1]], axis=1)
    assert len({*pairs[:, 0]}) == len({*pairs[:, 1]}) == len(pairs) and (d <= distance).all()
    most, total = every_pairing(picks, particles, distance)
    assert len(pairs) == most and d.sum() == pytest.approx(-total, abs=1e-9)

@settings(max_examples=100, deadline=None)
@given(points(7), points(7), st.integers(0, 2**32 - 1), st.booleans())
def test_one_matching_is_the_largest_at_every_threshold(picks, particles, seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, len(picks)) / 2 if ties else rng.random(len(picks))
    pairs = one_to_one(picks, particles, 3.0, scores)
    for t in scores: assert (scores[pairs[:, 0]] >= t).sum() == len(one_to_one(picks[scores >= t], particles, 3.0))

def test_a_crowd_agrees_with_the_dense_assignment_and_is_fast():
    from scipy.optimize import linear_sum_assignment
    rng = np.random.default_rng(0)
    particles = rng.uniform(0, 1500, (2000, 2))  # a mean distance of 17 px: nearly all of them hang together
    picks = particles + rng.normal(0, 8, particles.shape)
    began = time.perf_counter()
    pairs = one_to_one(picks, particles, 20.0)
    assert time.perf_counter() - began < 15
    d = np.linalg.norm(picks[:, None] - particles[None], axis=-1)
    gain = np.where(d <= 20, 1 - d / 20 / 2001, 0)
    a, b = linear_sum_assignment(gain, maximize=True)
    assert len(pairs) == (gain[a, b] > 0).sum() and (
        1 - np.linalg.norm(
            picks[pairs[:, 0]] - particles[pairs[:, 1]], axis=1) / 20 / 2001).sum() == pytest.approx(gain[a, b].sum())

def test_the_curve_is_scikit_learns_by_definition():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 500, (60, 2))
    picks = Picks(np.concatenate([truth[:45] + rng.normal(0, 3, (45, 2)), rng.uniform(0, 500, (30, 2))]),
                  scores=rng.random(75).round(1))
    m = match_picks(picks, truth, 20)
    area, before = 0.0, 0.0
    for t in sorted({*picks.scores}, reverse=True):
        kept = picks.scores >= t
        hits = (m.picks[kept] == HIT).sum()
        area, before = area + (hits / 60 - before) * hits / kept.sum(), hits / 60
        s = particle_scores(m, t)
        assert (s.precision, s.recall) == (pytest.approx(hits / kept.sum()), pytest.approx(hits / 60))
        assert s.hits == len(one_to_one(picks.centers[kept], truth, 10))
    assert particle_scores(m).auprc == pytest.approx(area)
    t, f1 = best_particle_threshold(m)
    assert f1 == max(particle_scores(m, x).f1 for x in picks.scores) == particle_scores(m, t).f1
    assert len(particle_curve(m)[0]) == len({*picks.scores})

def test_edge_and_ignored_regions():
    size = (100, 200)
    for x, y, counts in ((9.4, 50, False), (9.5, 50, True), (189.5, 50, True), (189.6, 50, False), (100, 9, False),
                         (100, 90, False), (100, 89.5, True)):
        m = match_picks(np.zeros((0, 2)), [[x, y]], 20, size=size)
        assert m.particles[0] == (FALSE if counts else LEFT_OUT)
        assert match_picks([[x, y]], np.zeros((0, 2)), 20, size=size).picks[0] == (FALSE if counts else LEFT_OUT)
    # one for the particle inside, one for that in the margin, one for nothing
    two = match_picks([[9, 50], [6, 50], [3, 50]], [[14, 50], [6, 50]], 20, size=size)
    assert sorted(two.picks) == [LEFT_OUT, LEFT_OUT, HIT] and list(two.particles) == [HIT, LEFT_OUT]
    dirt = np.zeros(size, bool)
    dirt[40:60, 40:60] = True
    m = match_picks([[50, 50], [62, 50]], [[55, 50], [100, 50]], 20, size=size, ignore=dirt)
    # the second stands for a particle that does not count
    assert list(m.picks) == [LEFT_OUT, LEFT_OUT] and list(m.particles) == [LEFT_OUT, FALSE]

def test_empty_pictures_are_scored():
    nothing = np.zeros((0, 2))
    s = particle_scores(
        [match_picks(nothing, nothing, 5), match_picks(nothing, [[1, 1]], 5), match_picks([[1, 1]], nothing, 5)])
    assert (s.hits, s.false, s.missed, s.f1, s.precision, s.recall) == (0, 1, 1, 0, 0, 0) and np.isnan(s.auprc)
    assert list(particle_table([match_picks(nothing, nothing, 5)]).index) == ["0", "pooled"]

# ---- from areas to picks

def discs(centers, diameter, shape) -> np.ndarray:
    y, x = np.mgrid[:shape[0], :shape[1]]
    return np.any([np.hypot(x - a, y - b) <= diameter / 2 for a, b in centers], axis=0)

@pytest.mark.parametrize("diameter", [8, 15, 33, 70])
def test_touching_discs_come_apart(diameter):
    d = diameter * 1.0
    centers = np.array([[2, 2], [2.95, 2], [3.4, 2.85], [5, 5], [6, 5], [7, 5], [0.3, 6]]) * d
    mask = discs(centers, d, (int(8 * d), int(8 * d)))
    picks, areas = find_particles(mask, d)
    assert len(picks) == len(centers) == areas.max() and np.isnan(picks.scores).all()
    pairs = one_to_one(picks.centers, centers, d / 4)
    assert len(pairs) == len(centers)
    for k in range(len(picks)):
        y, x = np.nonzero(areas == k + 1)
        assert ((x.mean(), y.mean()) == pytest.approx(tuple(picks.centers[k]))
                and 2 * (len(x) / np.pi) ** 0.5 == pytest.approx(picks.sizes[k]))
    assert ((areas > 0) <= mask).all() and (areas > 0).sum() > 0.99 * mask.sum()

def test_ragged_outlines_make_no_particles_of_their_own():
    from scipy.ndimage import distance_transform_edt, gaussian_filter
    rng = np.random.default_rng(0)
    centers = np.stack(
        np.meshgrid(np.arange(40, 400, 50), np.arange(40, 400, 50)), -1).reshape(-1, 2) + rng.integers(-4, 5, (64, 2))
    far = np.ones((440, 440), bool)
    far[tuple(centers[:, ::-1].T)] = False
    noise = gaussian_filter(rng.normal(size=far.shape), 1.5) / 0.19
    for diameter, ragged, most in ((40, 7, 0), (20, 5, 12)):  # without smoothing 6 and 55 false ones
        s = particle_scores(
            match_picks(find_picks(distance_transform_edt(far) <= diameter / 2 + ragged * noise, diameter, least=0.3),
                        centers, diameter, within=0.3))
        assert s.false <= most and s.missed <= 2

def test_specks_emptiness_fullness():
    assert len(find_picks(np.zeros((50, 60), "f4"))) == len(find_picks(np.zeros((50, 60), "f4"), 12)) == 0
    assert len(find_picks(np.ones((64, 64), "f4"), 60.0)) == 1
    specks = np.zeros((64, 64), "f4")
    specks[::9, ::9] = 1
    assert len(find_picks(specks, 12)) == 0 and separate(specks > 0, 12).max() > 40
    target = np.full((40, 40), 255, "u1")
    target[10:20, 10:20] = 1
    assert find_picks(target, 10).centers.tolist() == [[14.5, 14.5]]  # 255 is not particle
    with pytest.raises(UserError, match="diameter"): estimate_diameter([np.zeros((9, 9), bool)])

def test_the_diameter_of_touching_discs_is_that_of_one():
    rng = np.random.default_rng(0)
    centers = [*(c + k * np.array([14.0, 0]) for c in rng.uniform(30, 370, (20, 2)) for k in (0, 1)),
               *rng.uniform(20, 380, (10, 2))]
    assert estimate_diameter(discs(centers, 16, (400, 400))) == pytest.approx(16, rel=0.1)

def test_true_centers_of_built_in_micrographs_are_found_from_their_masks():
    images = micrographs(n_train=6, size=256).train
    truth = [true_picks(images, i) for i in range(6)]
    found = [match_picks(find_picks(images.mask(i), 15.0), t, 15.0) for i, t in enumerate(truth)]
    assert particle_scores(found).recall > 0.95
    with pytest.raises(UserError, match="built-in"): true_picks(from_arrays([np.eye(8)]), 0)

# ---- streaming

def trained_looking(name="unet", seed=0):
    "A network whose batch statistics are not those of its first moment."
    network, g = build_network(name), torch.Generator().manual_seed(seed)
    for m in network.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(generator=g), m.running_var.uniform_(0.5, 2, generator=g)
    return network

@pytest.mark.parametrize("shape", [(1040, 300), (300, 1040), (513, 777), (130, 4100)])
@pytest.mark.parametrize("tile", [128, 256])
def test_tiles_leave_no_seams(shape, tile):
    images = from_arrays([np.random.default_rng(0).normal(size=shape).astype("f4")])
    network = trained_looking()
    (_, whole), (_, tiled) = (next(stream_predictions(network, images, tile=t)) for t in (4112, tile))
    assert whole.shape == tiled.shape == (1, 1, *shape) and whole.std() > 0.1
    assert (whole - tiled).abs().max() < 1e-4

def test_several_large_images_of_one_shape_are_told_apart():
    images = from_arrays(list(np.random.default_rng(0).normal(size=(3, 300, 200)).astype("f4")))
    network = trained_looking()
    for (batch, tiled), k in zip(stream_predictions(network, images, batch_size=2, tile=128), range(3)):
        (_, whole), = stream_predictions(network, images.subset([images.ids[k]]))
        assert batch == [k] and (whole - tiled).abs().max() < 1e-4

def test_a_network_that_looks_far_needs_the_margin():
    torch.manual_seed(0)
    network, images = torch.nn.Conv2d(1, 2, 3, padding=60, dilation=60), from_arrays(
        [np.random.default_rng(0).normal(size=(400, 290)).astype("f4")])
    (_, whole), (_, tiled), (_, narrow) = (next(stream_predictions(network, images, tile=t)) for t in (1024, 256, 128))
    assert (whole - tiled).abs().max() < 1e-4 < 1e-2 < (whole - narrow).abs().max()

def test_a_micrograph_of_4096_px_has_no_seams():
    images = from_arrays([np.random.default_rng(0).normal(size=(4096, 4096)).astype("f4")])
    network = trained_looking()
    (_, tiled), (_, whole) = (next(stream_predictions(network, images, tile=t)) for t in (1024, 4096))
    assert (whole - tiled).abs().max() < 1e-4 and whole.std() > 0.1

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(4, 70))
def test_what_is_kept_of_tiles_covers_the_side_once(side, tile):
    side, tile = side * 16, tile * 16
    places, margin = tile_places(side, tile), tile_margin(tile)
    assert (
        [a for _, a, _ in places[1:]] == [b for _, _, b in places[:-1]] and places[0][1] == 0 and places[-1][2] == side)
    for start, a, b in places:
        assert start % 16 == 0 and start <= a < b <= min(start + tile, side)
        assert a in (0, start + margin) and (b == side or b <= start + tile - margin)

STREAM = """
import resource, sys
import numpy as np, torch
from pseudolabel_nb.data.images import Cache, ImageSet, Item
from pseudolabel_nb.inference.streaming import stream_predictions
torch.set_num_threads(1)
class Read:
    def __init__(self, k): self.k = k
    def __call__(self): return np.random.default_rng(self.k).normal(size=(1024, 1024)).astype("f4")
images = ImageSet([Item(str(k), (1024, 1024), Read(k)) for k in range(int(sys.argv[1]))], cache=Cache(0))
for _, probs in stream_predictions(torch.nn.Conv2d(1, 2, 3, padding=1), images, batch_size=2, tile=512): pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

def test_memory_does_not_grow_with_the_number_of_images():
    peak = {
        n: int(
            subprocess.run([sys.executable, "-c", STREAM, str(n)], cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS="1"),
                           capture_output=True, text=True, check=True).stdout)
        for n in (3, 18)}
    assert peak[18] - peak[3] < 30 * 1024, peak  # KiB; an image and its prediction are 8 MiB, fifteen more of them 120

def test_an_interrupt_is_heard_between_tiles(monkeypatch):
    monkeypatch.setattr(monitor, "_asked", [])
    seen = []
    class Asking(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            monitor._asked.append(signal.SIGINT)
            return torch.zeros(len(x), 2, *x.shape[-2:])
    with pytest.raises(KeyboardInterrupt):
        list(stream_predictions(Asking(), from_arrays([np.eye(512, dtype="f4")]), batch_size=2, tile=128))
    assert seen == [2]

# ---- writing

EXAMPLES = [Picks([[0, 0], [30.25, 50], [4095, 4095], [599.996, 17.5]], [36, 40, 44.5, 100], [1.0, 0.75, 0.3, 1e-5],
                  "grid 1/a b.mrc", (4096, 4096)),
            Picks([], image="none.tif", size=(300, 200)), Picks([[10, 20]], [12.5], [0.123456], "c.mrc", (2000, 3000))]

@pytest.fixture
def written(tmp_path):
    "All examples in all formats."
    for kind in FORMATS:
        if kind != "cs": write_coordinates(EXAMPLES, tmp_path / kind, kind)
    for name in ("joint.star", "joint.csv", "joint.cs"): write_coordinates(EXAMPLES, tmp_path / name, pixel=1.77)
    return tmp_path

def independent(written: Path, kind: str, p: Picks) -> np.ndarray: # (n, 3): x, y, score
    "What a library that knows nothing of this one reads."
    import starfile
    if kind == "joint.star":
        t = starfile.read(written / kind)["particles"]
        return t[t["rlnMicrographName"] == p.image][
            ["rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"]].to_numpy(float)
    if kind == "joint.csv":
        t = pd.read_csv(written / kind)
        return t[t["image"] == p.image][["x", "y", "score"]].to_numpy(float)
    if kind == "joint.cs":
        t = np.load(written / kind, allow_pickle=False)
        t = t[t["location/micrograph_path"] == p.image.encode()]
        height, width = t["location/micrograph_shape"].T.astype(float) if len(t) else (1, 1)
        return np.stack(
            [t["location/center_x_frac"] * width, t["location/center_y_frac"] * height, t["pick_stats/ncc_score"]], 1)
    path = path_for(written / kind, p.image, f".{kind}")
    if kind == "star":
        return np.array(
            starfile.read(path).reindex(columns=["rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"]),
            float).reshape(-1, 3) if len(p) else np.zeros((0, 3))
    if kind == "csv": return pd.read_csv(path)[["x", "y", "score"]].to_numpy(float)
    rows = np.loadtxt(path, ndmin=2) if kind == "box" and len(p) else np.zeros((0, 5))
    if kind == "cbox" and len(p):
        rows = starfile.read(path)["cryolo"].pipe(lambda t: t if isinstance(t, pd.DataFrame) else pd.DataFrame([t]))[
            ["CoordinateX", "CoordinateY", "Width", "Height", "Confidence"]].to_numpy(float)
    return np.column_stack([rows[:, :2] + rows[:, 2:4] / 2, rows[:, 4]])

@pytest.mark.parametrize("kind", ["star", "box", "cbox", "csv", "joint.star", "joint.csv", "joint.cs"])
def test_independent_readers_find_the_same_coordinates(written, kind):
    for p in EXAMPLES:
        found = independent(written, kind, p)
        assert found.shape == (len(p), 3)
        np.testing.assert_allclose(found[:, :2], p.centers.reshape(-1, 2), atol=0.01)
        np.testing.assert_allclose(found[:, 2], p.scores, atol=1e-3)

@pytest.mark.parametrize("kind", ["star", "box", "cbox", "csv", "joint.star", "joint.csv", "joint.cs"])
def test_our_reader_finds_the_same_coordinates(written, kind):
    found = read_coordinates(
        written / kind if kind.startswith("joint") else path_for(written / kind, EXAMPLES[0].image, f".{kind}"),
        [p.image for p in EXAMPLES])
    p = EXAMPLES[0]
    np.testing.assert_allclose(found[p.image].centers, p.centers, atol=0.01)
    np.testing.assert_allclose(found[p.image].scores, p.scores, atol=1e-3)

def test_relion_reads_the_first_table_of_a_coordinate_file(written):
    text = path_for(written / "star", "c.mrc", ".star").read_text()
    assert text.count("data_") == 1 and "data_optics" not in text
    joint = (written / "joint.star").read_text()
    assert joint.index("data_optics") < joint.index("data_particles") and "_rlnMicrographOriginalPixelSize" in joint

def test_cs_holds_no_objects(written):
    table = np.load(written / "joint.cs", allow_pickle=False)
    assert not table.dtype.hasobject and len({*table["uid"].tolist()}) == len(table)

@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_codes_are_those_of_pycocotools(h, w, n, seed):
    from pycocotools import mask as coco
    areas = np.random.default_rng(seed).integers(0, n + 1, (h, w))
    codes = area_codes(areas)
    assert len(codes) == areas.max()
    for k, code in enumerate(codes, 1): assert (coco.decode(code) == (areas == k)).all()

def test_coco_comes_back_as_labels(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    found = {}
    for k in range(2):
        Image.fromarray(rng.integers(0, 255, (60, 80), dtype="u1")).save(tmp_path / f"train/{k}.png")
        found[f"{k}.png"] = find_particles(
            discs([[20, 20 + k], [31, 20], [60, 40]], 12, (60, 80)).astype("f4") * np.float32(0.9), 12,
            image=f"{k}.png")
    write_coco(tmp_path / "train/_annotations.coco.json", ((p, area_codes(a)) for p, a in found.values()))
    data = pnb.open_images(tmp_path)
    for k, id in enumerate(data.train.ids): assert (data.train.mask(k) == (found[id][1] > 0)).all()
    document = json.loads((tmp_path / "train/_annotations.coco.json").read_text())
    assert len(document["annotations"]) == 6 and {a["score"] for a in document["annotations"]} == {0.9} and not any(
        a["iscrowd"] for a in document["annotations"])

def test_mask_and_map(tmp_path):
    import mrcfile
    p = np.random.default_rng(0).random((33, 47)).astype("f4")
    write_mask(tmp_path / "deep/m.png", p > 0.5)
    write_probabilities(tmp_path / "p.mrc", p, 1.25)
    assert (np.array(Image.open(tmp_path / "deep/m.png")) == np.where(p > 0.5, 255, 0)).all()
    with mrcfile.open(tmp_path / "p.mrc") as f:
        assert (f.data == p).all() and float(f.voxel_size.x) == pytest.approx(1.25)
    assert not list(tmp_path.rglob("*.part"))

SLIPS = dict(outside=(lambda d: write_coordinates(Picks([], image="../x.mrc"), d / "star", "star"), "leads out"),
             unknown=(lambda d: write_coordinates(EXAMPLES[0], d / "a.pdb"), "star"),
             joint_box=(lambda d: write_coordinates(EXAMPLES, d / "a.box"), "folder"),
             unsized=(lambda d: write_coordinates(Picks([[1, 2]], image="a"), d / "box", "box"), "box="),
             unnamed=(lambda d: write_coordinates(Picks([[1, 2]]), d / "star", "star"), "without a name"))
@pytest.mark.parametrize("slip, part", SLIPS.values(), ids=SLIPS)
def test_what_cannot_be_written_is_one_line(tmp_path, slip, part):
    with pytest.raises(UserError, match=part) as e: slip(tmp_path)
    assert "\n" not in str(e.value) and not list(tmp_path.rglob("*.*"))

# ---- the command

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of a few steps."
    data = micrographs(n_train=20, n_val=5, n_test=2, size=64, coverage=0.1, noise=0.3)
    small = pnb.Settings(steps=80, crop=64, network_options=dict(widths=(8, 16)), evaluations=1)
    return pnb.run(
        data, "supervised", tmp_path_factory.mktemp("run") / "run", labeled_ratio=1.0, settings=small, device="cpu")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Five images, one of another size, one deeper."
    root = tmp_path_factory.mktemp("images")
    images = micrographs(n_test=5, size=96, coverage=0.1, noise=0.3).test
    for i in range(5):
        x = np.clip(images.image(i)[0] * 40 + 128, 0, 255).astype("u1")
        path = root / ("deep/" * (i == 2)) / f"m {i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(x[:, :80] if i == 3 else x).save(path)
    return root

def predicted(run, folder, out, *more) -> int:
    return cli.predict(
        [str(run.folder), str(folder), "--out", str(out), "--format", ",".join(ALL_FORMATS), "--diameter", "12",
         "--device", "cpu", *more])

def contents(out: Path) -> dict[str, bytes]:
    "All files; MRC headers hold the time, and one list the folder's name."
    return {p.relative_to(out).as_posix(): p.read_bytes()[1024 * (p.suffix == ".mrc"):]
            for p in sorted(out.rglob("*")) if p.is_file() and p.name not in (".lock", "autopick.star")}

def test_everything_is_written_in_the_images_own_pixels(run, folder, tmp_path, capsys):
    assert predicted(run, folder, tmp_path / "out", "--pixel-size", "8") == 0
    said = capsys.readouterr().out
    assert "particles on 5 images" in said and "particles.star" in said and str(tmp_path / "out") in said
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    for kind in ("star", "box", "cbox", "csv", "mask", "mrc"):
        assert sorted(p.relative_to(tmp_path / "out" / kind).with_suffix("").as_posix()
                      for p in (tmp_path / "out" / kind).rglob("*.*")) == [n[:-4] for n in names]
    joint = read_coordinates(tmp_path / "out/particles.star")
    assert {Path(n).relative_to(folder).as_posix() for n in joint} <= {*names} and sum(map(len, joint.values())) > 5
    coco = json.loads((tmp_path / "out/coco.json").read_text())
    assert (
        [i["file_name"] for i in coco["images"]] == names and len(coco["annotations"]) == sum(map(len, joint.values())))
    assert np.array(Image.open(tmp_path / "out/mask/m 3.png")).shape == (96, 80)
    again = contents(tmp_path / "out")
    assert predicted(run, folder, tmp_path / "out", "--pixel-size", "8") == 0 and contents(tmp_path / "out") == again

def events_below(out: str, kill_at: int) -> None:
    "Kill this process right before its n-th file event below `out`."
    seen = 0
    def hook(event, args):
        nonlocal seen
        if (event not in ("open", "os.mkdir", "os.remove", "os.rename") or not isinstance(args[0], (str, os.PathLike))
                or not os.fspath(args[0]).startswith(out)):
            return
        seen += 1
        if seen == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

@pytest.mark.parametrize("kill_at", [1, 4, 9, 23, 40, 61, 88, 120])
def test_killed_anywhere_the_same_command_goes_on(run, folder, tmp_path, kill_at, one_thread):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    child = os.fork()
    if child == 0:
        events_below(str(cut), kill_at)
        predicted(run, folder, cut)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, -signal.SIGKILL)
    assert predicted(run, folder, whole) == predicted(run, folder, cut) == 0
    assert contents(whole) == contents(cut)

def test_reduced_images_are_picked_in_their_own_pixels(run, folder, tmp_path):
    (tmp_path / "out/prepared").mkdir(parents=True)
    (tmp_path / "out/prepared/notes.txt").write_text("mine")
    assert predicted(run, folder, tmp_path / "out", "--working-size", "64") == 0
    assert np.array(Image.open(tmp_path / "out/mask/m 0.png")).shape == (96, 96) and (
        tmp_path / "out/prepared/notes.txt").exists() and not [*(tmp_path / "out").glob(".pseudolabel*")]
    rows = pd.read_csv(tmp_path / "out/picks.csv")
    assert len(rows) and rows[["x", "y"]].to_numpy().max() > 64

def test_from_mrc_and_star_to_star_and_back(tmp_path, monkeypatch, capsys):
    import mrcfile
    images = micrographs(n_train=8, size=128, coverage=0.1, noise=0.3).train
    (tmp_path / "Micrographs").mkdir()
    for i, id in enumerate(images.ids):
        with mrcfile.new(tmp_path / f"Micrographs/{id}.mrc") as f:
            f.set_data(images.image(i)[0])
            f.voxel_size = 8.0
    truth = {f"{id}.mrc": true_picks(images, i) for i, id in enumerate(images.ids)}
    write_coordinates([Picks(p.centers, image=f"Micrographs/{n}", size=p.size) for n, p in truth.items()],
                      tmp_path / "truth.star", pixel=8.0)
    monkeypatch.chdir(tmp_path)
    quick = ("--labeled-ratios", "1.0", "--strategy", "supervised", "--steps", "150", "--crop", "64",
             "--learning-rates", "0.01", "--device", "cpu", "--setting", "network_options={\"widths\": [8, 16]}")
    assert cli.train(
        ["--data-dir", "Micrographs", "--picks", "truth.star", "--picks-y", "down", "--diameter", "15", "--longest",
         "96", "--output-dir", "out", *quick]) == 0
    assert cli.predict(["out/runs/supervised-r1-s0", "Micrographs", "--device", "cpu", "--format", "star,mask"]) == 0
    assert "diameter 15.0 px," in capsys.readouterr().out.splitlines()[-1]
    # reduced, and labeled by picks
    assert cli.diagnose(["out/runs/supervised-r1-s0"]) == 0 and "without the images" not in capsys.readouterr().out
    found = read_coordinates("picks/particles.star", pnb.open_unlabeled("Micrographs"))
    assert {p.size for p in found.values()} == {(128, 128)} and np.array(
        Image.open("picks/mask/train_0000.png")).shape == (128, 128)
    assert ("_rlnMicrographPixelSize #4" in Path("picks/particles.star").read_text()
            and "Micrographs/train_0000.mrc" in Path("picks/autopick.star").read_text())
    assert particle_scores(match_picks(found.get(n, np.zeros((0, 2))), p, 15.0) for n, p in truth.items()).recall > 0.4

def one_line(capsys, argv) -> str:
    assert cli.predict([str(a) for a in argv]) == 2
    said = capsys.readouterr().err.rpartition("\r")[2] # a bar may have been drawn before, and is wiped off
    assert said.startswith("error: ") and said.count("\n") == 1
    return said

def test_slips_are_one_line(run, folder, tmp_path, capsys):
    base = [run.folder, folder, "--out", tmp_path / "out", "--device", "cpu"]
    assert "no such file" in one_line(capsys, [run.folder, tmp_path / "gone"])
    assert "no run folder" in one_line(capsys, [folder, folder])
    assert "'pdf'" in one_line(capsys, [*base, "--format", "star,pdf"])
    assert "threshold is 0" in one_line(capsys, [*base, "--threshold", "0"])
    for wrong in (["--diameter", "-3"], ["--diameter", "nan"], ["--threads", "0"], ["--working-pixel", "-2"]):
        assert "expected a" in one_line(capsys, [*base, *wrong])
    assert "no format is named" in one_line(capsys, [*base, "--format", ","])
    assert "more than the image" in one_line(capsys, [*base, "--diameter", "5000"])
    assert "multiple of 16" in one_line(capsys, [*base, "--tile", "50", "--diameter", "9"])
    assert "pixel size" in one_line(capsys, [*base, "--working-pixel", "16", "--diameter", "9"])
    assert cli.predict(
        [str(a) for a in [*base[:2], "--out", tmp_path / "other", "--diameter", "12", "--device", "cpu"]]) == 0
    assert "other settings (diameter was 12.0, now 13.0" in one_line(
        capsys, [*base[:2], "--out", tmp_path / "other", "--diameter", "13", "--device", "cpu"])

def test_more_images_are_picked_later(run, folder, tmp_path):
    some, every = tmp_path / "some", tmp_path / "every"
    images = pnb.open_unlabeled(folder)
    pick_images(run, images.subset(images.ids[:2]), some, ("csv",), diameter=12, device="cpu")
    read = []
    watched = ImageSet([Item(i.id, i.shape, lambda i=i: (read.append(i.id), i.read_image())[1]) for i in images.items])
    assert [len(p) for p in pick_images(run, watched, some, ("csv",), diameter=12, device="cpu")] == [
        len(p) for p in pick_images(run, images, every, ("csv",), diameter=12, device="cpu")]
    assert read == list(images.ids[2:])

def test_one_bad_image_does_not_keep_the_others(run, folder, tmp_path, capsys):
    import tifffile
    shutil.copytree(folder, tmp_path / "grid")
    tifffile.imwrite(tmp_path / "grid/a.tif", np.where(np.eye(96), np.nan, 1).astype("f4")) # its header is whole
    said = one_line(
        capsys, [run.folder, tmp_path / "grid", "--out", tmp_path / "out", "--diameter", "12", "--device", "cpu"])
    assert "a.tif" in said and "NaN" in said and "all others are done" in said
    assert len((tmp_path / "out/done.jsonl").read_text().splitlines()) == len([*folder.rglob("*.png")])

@pytest.mark.parametrize("name, text, part",
                         [("config.json", '{"model_type": "bert"}', "lacks strategy"),
                          ("config.json", "[1]", "holds a list"), ("rounds.jsonl", b"\xff\n", "not JSON"),
                          ("rounds.jsonl", "3\n", "a line is '3'"), ("environment.json", "[]", "holds a list")])
def test_a_run_folder_that_is_damaged(run, folder, tmp_path, capsys, name, text, part):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    said = one_line(
        capsys, [tmp_path / "run", folder, "--out", tmp_path / "out", "--diameter", "12", "--device", "cpu"])
    assert str(tmp_path / "run" / name) in said and part in said

def test_help_answers_at_once():
    began = time.perf_counter()
    code = ("import sys\nfrom pseudolabel_nb.cli import predict\ntry: predict(['--help'])\nexcept SystemExit: pass\n"
            "assert not {'torch', 'skimage', 'scipy', 'pandas', 'matplotlib'} & {*sys.modules}")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, COLUMNS="200"))
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 10 and all(f in done.stdout for f in ALL_FORMATS) and "example:" in done.stdout

def test_images_in_a_folder_of_that_name_keep_their_path(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "grid" / "images")
    arguments = [run.folder, tmp_path / "grid", "--out", tmp_path / "grid" / "images" / "picks", "--format",
                 "star,mask", "--diameter", "12", "--device", "cpu"]
    # what was written is not taken for more images
    for _ in range(2): assert cli.predict([str(a) for a in arguments]) == 0
    assert f"{(tmp_path / 'grid' / 'images').as_posix()}/" in (
        tmp_path / "grid" / "images" / "picks" / "particles.star").read_text()

@pytest.mark.parametrize("typed, said", [((), "8.0"), (("--pixel", "4"), "4.0")])
def test_the_pixel_of_training_is_that_of_picking(run, folder, tmp_path, typed, said):
    shutil.copytree(run.folder, tmp_path / "run")
    known = json.loads((tmp_path / "run/environment.json").read_text())
    (tmp_path / "run/environment.json").write_text(json.dumps(known | dict(source=dict(pixel=8.0))))
    assert cli.predict(
        [str(a) for a in [
             tmp_path / "run", folder, "--out", tmp_path / "out", "--diameter", "12", "--device", "cpu", *typed]]) == 0
    assert json.loads((tmp_path / "out/picking.json").read_text())["pixel"] == float(said)

def test_an_image_that_changed_is_picked_again(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "grid")
    pick = lambda: {
        p.image: len(p) for p in pick_images(
            run, pnb.open_unlabeled(tmp_path / "grid"), tmp_path / "out", ("csv",), diameter=12, device="cpu")}
    first = pick()
    assert pick() == first
    one = max(first, key=first.get)
    with Image.open(tmp_path / "grid" / one) as image: flat = np.full_like(np.asarray(image), 128)
    Image.fromarray(flat).save(tmp_path / "grid" / one)
    again = pick()
    assert again.pop(one) != first.pop(one) and again == first
