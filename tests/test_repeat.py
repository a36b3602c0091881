"""A run knows its images, and can be done again from its folder: what is not as it was then is named, and whether the
same came out."""
import json, shutil, time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError, read_json, write_json
from pseudolabel_nb.data.fingerprint import fingerprints, spread
from pseudolabel_nb.data.images import HiddenLabels, from_arrays
from pseudolabel_nb.experiments.repeat import changed_outcome, differences, repeat
from pseudolabel_nb.runs.compare import compare
from pseudolabel_nb.training import loop
from pseudolabel_nb.training.rounds import adopt_teacher, first_training
from pseudolabel_nb.training.task import begin

SETTINGS = pnb.Settings(
    steps=12, batch_size=2, crop=16, network_options=dict(widths=(4, 8)), evaluations=1, checkpoint_every=4)
STRATEGY = pnb.strategy("class_balanced", rounds=1)


def arrays(n: int, seed: int) -> list:
    "Noisy images of 24 × 24 px, each with a square, and their masks."
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, 24, 24), "u1")
    for m in masks:
        y, x = rng.integers(0, 16, 2)
        m[y:y + 7, x:x + 7] = 1
    return [(masks + 0.5 * rng.standard_normal(masks.shape)).astype("f4"), masks]


def made(change=lambda splits: None, **more) -> pnb.Data:
    "The data set, after `change` has had its pixels; `more` are fields of `Data`."
    splits = {name: arrays(n, seed) for seed, (name, n) in enumerate(dict(train=12, val=6, test=6).items())}
    change(splits)
    return pnb.Data("squares", **{name: from_arrays(*pixels, name=name) for name, pixels in splits.items()}, **more)


def run(folder, data=None, **more) -> pnb.Run:
    return pnb.run(
        data or made(), STRATEGY, folder, **dict(dict(labeled_ratio=0.25, settings=SETTINGS, device="cpu"), **more))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> pnb.Run:
    "A finished run; tests that change its folder take a copy."
    return run(tmp_path_factory.mktemp("runs") / "first", source=dict(data_dir="/data/squares", multiclass=False))


@pytest.fixture
def copy(first, tmp_path) -> pnb.Run:
    return pnb.open_run(shutil.copytree(first.folder, tmp_path / "copy"))


# ---- its images

def at(split: str, which: int, image: int):
    "Changes one pixel of an image (0) or of a mask (1)."
    def change(splits):
        splits[split][which][image][3, 3] += 1 if which == 0 else 1 - 2 * splits[split][which][image][3, 3]
    return change


@pytest.mark.parametrize(("change", "named"),
                         [(at("train", 0, 5), {"train"}), (at("val", 0, 1), {"val"}), (at("val", 1, 1), {"val"}),
                          (at("test", 0, 2), {"test"}), (at("test", 1, 2), {"test"})],
                         ids=["train image", "val image", "val mask", "test image", "test mask"])
def test_going_on_with_other_pixels_of_the_same_name_is_refused(copy, change, named):
    found = fingerprints(made(change), copy.split["labeled"])
    assert {n for n in found if found[n] != copy.config["fingerprint"][n]} == named
    with pytest.raises(UserError, match=r"another config \(fingerprint\.") as error: run(copy.folder, made(change))
    assert "\n" not in str(error.value)
    assert [d.split(":")[0] for d in differences(copy, made(change))] == sorted(named)


def test_masks_of_labeled_images_are_looked_at_and_no_others(copy):
    labeled = [int(id.split("_")[1]) for id in copy.split["labeled"]]
    hidden = next(i for i in range(12) if i not in labeled)
    assert differences(copy, made(at("train", 1, labeled[0]))) == [
        "labeled: names, pixels or masks of the labeled images are not those of then"]
    assert differences(copy, made(at("train", 1, hidden))) == []
    assert run(copy.folder, made(at("train", 1, hidden))).result == copy.result


def never(): raise HiddenLabels("a hidden mask was read")


def test_a_whole_run_reads_no_hidden_mask(first, tmp_path):
    data, labeled = made(), first.split["labeled"]
    guarded = data.train._with(
        [item if item.id in labeled else replace(item, read_mask=never) for item in data.train.items])
    again = run(tmp_path / "guarded", replace(data, train=guarded))
    assert changed_outcome(first, again) == [] and again.config == first.config


def test_sizes_groups_and_order_count(first):
    data = made()
    same = fingerprints(data, first.split["labeled"])
    assert fingerprints(
        replace(data, val=data.val.subset(data.val.ids[::-1])), first.split["labeled"])["val"] != same["val"]
    assert fingerprints(replace(data, val=data.val._with([replace(i, group="a") for i in data.val.items])),
                        first.split["labeled"])["val"] != same["val"]
    assert fingerprints(
        replace(data, train=data.train.subset(data.train.ids[:-1])), first.split["labeled"])["train"] != same["train"]
    assert fingerprints(
        replace(data, unlabeled=from_arrays(arrays(2, 9)[0])), first.split["labeled"]).keys() == {*same, "unlabeled"}


def test_each_file_is_read_once_and_at_most_sixteen_a_split():
    reads = []
    def read(k):
        reads.append(k)
        return np.full((8, 8), k, "u1")
    data = made()
    data = replace(
        data, train=data.train._with([pnb.data.images.Item(f"{k}", (8, 8), partial(read, k)) for k in range(100)]))
    first = fingerprints(data, [])
    assert reads == spread(100) and len(reads) == 16 and {0, 99} <= set(reads)
    assert fingerprints(data, []) == first and len(reads) == 16


def test_a_run_from_before_fingerprints_goes_on(copy, first):
    write_json(copy.folder / "config.json", {k: v for k, v in first.config.items() if k != "fingerprint"})
    (copy.folder / "result.json").unlink()
    (copy.folder / "rounds.jsonl").write_bytes((copy.folder / "rounds.jsonl").read_bytes().splitlines(True)[0])
    assert changed_outcome(first, run(copy.folder)) == [] and "fingerprint" not in copy.config and copy.result
    assert differences(copy, made()) == [
        "pixels: cannot be compared, since this run was begun before fingerprints were written"]


def test_a_folder_in_which_nothing_was_trained_takes_other_images(tmp_path):
    begin(made(), STRATEGY, tmp_path, 0.25)
    other = begin(made(at("val", 0, 1)), STRATEGY, tmp_path, 0.25)
    assert other.config["fingerprint"] == fingerprints(made(at("val", 0, 1)), other.split["labeled"])


def test_a_teacher_of_other_images_is_not_adopted(first, tmp_path):
    with pytest.raises(UserError, match="starts differently"):
        adopt_teacher(begin(made(at("val", 0, 1)), STRATEGY, tmp_path / "a", 0.25, settings=SETTINGS), first)
    same = begin(made(), STRATEGY, tmp_path / "b", 0.25, settings=SETTINGS)
    assert first_training(same.config) == first_training(first.config)
    adopt_teacher(same, first)
    assert same.records() == first.records()[:1]


def test_comparing_tells_data_apart_and_not_seeds(first, tmp_path):
    for seed in (0, 1): begin(made(), "supervised", tmp_path / f"supervised-{seed}", 0.25, seed)
    assert compare(tmp_path).apart == [] and len(compare(tmp_path).groups) == 1
    begin(made(at("val", 0, 1)), "supervised", tmp_path / "other", 0.25)
    assert compare(tmp_path).apart == ["fingerprint.val"]
    config = read_json(tmp_path / "other/config.json")
    write_json(tmp_path / "other/config.json", {k: v for k, v in config.items() if k != "fingerprint"})
    assert compare(tmp_path).apart == [] # a run from before there were any


def test_it_takes_less_than_a_second_on_real_data(real_data):
    data = pnb.open_images(real_data / "dsb2018")
    began = time.perf_counter()
    fingerprints(data, data.train.ids[:20])
    assert time.perf_counter() - began < 1.5 # 0.3 s on an idle core


# ---- what differs

def test_nothing_differs(first): assert differences(first, made()) == [] == differences(str(first.folder), made())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("python", "Python: then then, "), ("torch", "torch: then then, "), ("numpy", "numpy: then then, "),
     ("pseudolabel_nb", "pseudolabel_nb: then then, "), ("threads", "threads: then then, 1 now"),
     ("instructions", "instructions of the processor: then then, "), ("platform", "platform: then then, ")])
def test_surroundings_are_named(copy, name, sentence):
    write_json(copy.folder / "environment.json", copy.environment | {name: "then"})
    (said,) = differences(copy, made())
    assert said.startswith(sentence)


def test_a_device_that_is_not_here_is_named(copy):
    if torch.cuda.is_available(): pytest.skip("there is one")
    write_json(copy.folder / "environment.json",
               {k: v for k, v in copy.environment.items() if k not in ("threads", "instructions")}
               | dict(device="cuda", gpu="H100"))
    assert differences(copy, made()) == ["device: cuda then, cpu now"]


def test_data_that_are_called_or_read_otherwise_are_named(first):
    other = replace(
        made(), name="circles", classes=("background", "mito"), notes=("masks: 0/255 read as background/foreground",))
    assert differences(first, other) == [
        "name of the data set: squares then, circles now",
        "classes: ['background', 'foreground'] then, ['background', 'mito'] now",
        "said of the data now and not then: masks: 0/255 read as background/foreground"]


def test_splits_that_came_are_named(first):
    assert differences(first, made(unlabeled=from_arrays(arrays(2, 9)[0], name="unlabeled"))) == [
        "unlabeled images: there now, but not then"]


def test_images_that_are_gone_are_named_and_nothing_is_trained(first, tmp_path):
    data, gone = made(), first.split["labeled"][0]
    less = replace(data, train=data.train.subset([id for id in data.train.ids if id != gone]),
                   test=data.test.subset(data.test.ids[4:]))
    assert differences(first, less)[-2:] == [
        f"labeled: 1 of 3 images are not there: {gone}",
        "test: 4 of 6 images are not there: image_0, image_1, image_2, …"]
    with pytest.raises(UserError, match=gone) as error: repeat(first, less, tmp_path / "again")
    assert "\n" not in str(error.value) and not (tmp_path / "again").exists()


def test_a_test_set_made_of_half_of_validation_is_found_again(tmp_path):
    data = replace(made(), test=None)
    first = run(tmp_path / "first", data)
    assert differences(first, data) == []
    said = []
    repeat(first, data, tmp_path / "again", say=said.append)
    assert said[-1].startswith("the same, bit for bit: 2 rounds")


# ---- again

def test_the_same_comes_out_from_a_copy_of_the_folder_on_as_many_threads(copy, tmp_path):
    shutil.rmtree(copy.folder / "checkpoints") # it is not read from there
    said, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = repeat(copy.folder, made(), tmp_path / "again", say=said.append)
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)
    assert said == [
        *(f"again: {r}" for r in again.records()), "the same, bit for bit: 2 rounds and the score on the test set"]
    assert again.environment["threads"] == 1 and again.config == copy.config and again.split == copy.split
    assert again.source == dict(data_dir="/data/squares", multiclass=False)


def test_another_outcome_is_said(first, tmp_path):
    said = []
    again = repeat(first, made(at("val", 0, 1)), tmp_path / "again", say=said.append)
    assert said[0].startswith("not as it was then: val: ") and said[-1].startswith("not the same, of 2 rounds")
    assert json.loads(json.dumps(changed_outcome(first, again))) == changed_outcome(first, again) != []


def test_weights_alone_can_differ(copy, first):
    from pseudolabel_nb.models.checkpoints import load_tensors, save_tensors
    path = copy.folder / copy.records()[1].checkpoint
    tensors, facts = load_tensors(path)
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0].add_(1e-7)
    save_tensors(path, tensors, **facts)
    assert changed_outcome(first, copy) == ["round 1: the weights are others"]


def test_an_unfinished_run_is_compared_as_far_as_it_went(copy, tmp_path):
    (copy.folder / "result.json").unlink()
    (copy.folder / "rounds.jsonl").write_bytes((copy.folder / "rounds.jsonl").read_bytes().splitlines(True)[0])
    said = []
    again = repeat(copy, made(), tmp_path / "again", say=said.append)
    assert (said[-1] == "the same, bit for bit: 1 of 2 rounds, the weights (the run was not finished then)"
            and again.result)


def test_an_interrupted_repetition_goes_on_and_not_with_other_images(first, tmp_path, monkeypatch):
    learn = loop.Trainer.train_step
    def dying(trainer, *rest):
        if trainer.phase.number == 1: raise KeyboardInterrupt
        return learn(trainer, *rest)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(loop.Trainer, "train_step", dying)
        repeat(first, made(), tmp_path / "again", say=lambda line: None)
    with pytest.raises(UserError, match="fingerprint"):
        repeat(first, made(at("test", 1, 2)), tmp_path / "again", say=lambda line: None)
    said = []
    repeat(first, made(), tmp_path / "again", say=said.append)
    assert said[-1].startswith("the same, bit for bit") and len(said) == 2 # the second round, and the last line


def test_a_repetition_of_a_repetition_and_not_into_itself(first, tmp_path):
    with pytest.raises(UserError, match="the run itself"): repeat(first, made(), first.folder)
    with pytest.raises(UserError, match="is no run folder"): repeat(tmp_path, made(), tmp_path / "again")
    once = repeat(first, made(), tmp_path / "once", say=lambda line: None, source=dict(demo=True))
    assert once.source == dict(demo=True)
    assert changed_outcome(first, repeat(once, made(), tmp_path / "twice", say=lambda line: None)) == []


def test_a_finished_run_remembers_what_it_ran_in(copy):
    write_json(copy.folder / "environment.json", copy.environment | dict(torch="1.13.1"))
    run(copy.folder, source=dict(demo=True))
    assert copy.environment["torch"] == "1.13.1" and copy.source["data_dir"] == "/data/squares"
