"""Every registered strategy, through the one loop: does it learn from unlabeled images, leave its teacher alone,
resume, and say when the foreground vanishes?"""
import json
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError, from_dict, random_stream, read_jsonl, to_dict
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.data.loading import Batch
from pseudolabel_nb.inference.predictions import predict, store
from pseudolabel_nb.models.checkpoints import load_tensors
from pseudolabel_nb.models.networks import build_network
from pseudolabel_nb.runs.branch import branched_strategy
from pseudolabel_nb.strategies.copy_paste import CopyPaste
from pseudolabel_nb.strategies.fixmatch import FixMatch
from pseudolabel_nb.strategies.methods import Method
from pseudolabel_nb.strategies.positive_unlabeled import PositiveUnlabeled
from pseudolabel_nb.strategies.pseudo_images import PseudoImages
from pseudolabel_nb.strategies.reliable import ReliableImages, every_pixel_thresholds
from pseudolabel_nb.strategies.schedules import Moving
from pseudolabel_nb.strategies.selection import Context, Rule, apply
from pseudolabel_nb.strategies.self_training import SelfTraining
from pseudolabel_nb.strategies.strategy import Strategy, Teacher, strategies
from pseudolabel_nb.strategies.threshold import ClassThresholds, Threshold
from pseudolabel_nb.training import loop, rounds, step, teaching
from pseudolabel_nb.training.loop import Phase, train
from pseudolabel_nb.training.pretraining import Restorer, pretrain
from pseudolabel_nb.training.rounds import adopt_teacher
from pseudolabel_nb.training.step import Step, method_loss

SMALL = dict(widths=(4, 8))
SETTINGS = pnb.Settings(steps=24, batch_size=2, crop=16, network_options=SMALL, evaluations=3, checkpoint_every=5)
METHODS = [name for name, strategy in strategies.items() if strategy.selector is not None]


def discs(n: int, seed: int, classes: int = 2, size: int = 24):
    "Noisy images, each with a disc of every foreground class."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    masks = [sum((np.hypot(x - rng.uniform(4, size - 4), y - rng.uniform(4, size - 4)) < 3) * np.uint8(1) * c
                 for c in range(1, classes)).clip(0, classes - 1)
             for _ in range(n)]
    return from_arrays(
        [(m + 0.5 * rng.standard_normal(m.shape)).astype("float32") for m in masks], [m.astype("uint8") for m in masks],
        n_classes=classes)


@cache
def data() -> pnb.Data:
    return pnb.Data("discs", discs(12, 0), discs(6, 1), discs(6, 2))


pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def killed_after(steps: int):
    "Inside the block training is interrupted after so many steps, if it has that many left."
    learn, left = loop.Trainer.train_step, iter(range(steps))
    def dying(trainer, batch):
        if next(left, None) is None: raise KeyboardInterrupt
        return learn(trainer, batch)
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "train_step", dying)
        yield


def facts(run: pnb.Run) -> list:
    return [replace(r, seconds=0.0) for r in run.records()]


@pytest.mark.parametrize("name", strategies)
def test_a_strategy_survives_json_and_says_what_it_is(name):
    strategy = strategies[name]
    assert repr(from_dict(Strategy, json.loads(json.dumps(to_dict(strategy))))) == repr(strategy)
    assert strategy.name == name and strategy.about and "\n" not in strategy.about


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("classes", [2, 4])
def test_unlabeled_windows_move_the_student_and_not_the_teacher(name, classes):
    strategy = strategies[name]
    students = torch.nn.ModuleList(
        [build_network("unet", 1, classes, seed=k, **SMALL) for k in range(strategy.method.networks)])
    teacher = build_network("unet", 1, classes, seed=7, **SMALL)
    images = torch.from_numpy(random_stream(0).normal(size=(4, 1, 16, 16)).astype("float32"))
    masks = torch.full((4, 16, 16), 255)
    masks[2:] = torch.arange(256).view(16, 16) % classes # pseudo-labels; the labeled windows say nothing
    second = images[2:].flip(0) if len(strategy.method.views) == 2 else images[:0]
    batch = Batch(images, masks, torch.tensor([False, False, True, True]), torch.ones(4, 16, 16), torch.ones(4).bool(),
                  images[2:], second)
    rule = Rule((1 / classes,) * classes) if strategy.method.online else None
    state = {n: torch.full((classes,), value) for n, value in strategy.method.state.items()}
    now = Step(
        students, teacher, rule, prior=(1 / classes,) * classes, rng=random_stream(0), index=9, steps=10, state=state)
    method_loss(strategy.method, now, batch)[0].backward()
    assert all(sum(float(p.grad.abs().sum()) for p in s.parameters()) > 0 for s in students)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_with_weight_0_a_phase_is_the_supervised_phase(name, tmp_path):
    strategy, labeled, val = strategies[name], data().train.subset(data().train.ids[:4]), data().val
    pseudo = discs(6, 3)
    pseudo.rule = Rule((0.5, 0.5))
    plain = Phase(number=1, steps=8, labeled=labeled, val=val)
    silent = replace(plain, pseudo=pseudo, method=replace(strategy.method, weight=0.0))
    weights = []
    for phase, folder in ((plain, tmp_path / "plain"), (silent, tmp_path / "silent")):
        train(phase, SETTINGS, folder)
        weights.append(load_tensors(folder / "checkpoints" / "latest.safetensors")[0])
    mine = [n for n in weights[0] if n.startswith(("student.0.", "average.0."))]
    assert mine and all(torch.equal(weights[0][n], weights[1][n]) for n in mine)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_and_an_interrupted_one_ends_alike(name, tmp_path):
    options = dict(labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    whole = pnb.run(data(), name, tmp_path / "whole", **options)
    assert whole.status == "finished" and 0 <= whole.result["f1"] <= 1
    assert sum(r.steps for r in whole.records()) == SETTINGS.steps
    assert not list((whole.folder / "predictions").glob("*-member-*"))
    rng = random_stream(0, name)
    for _ in range(4): # killed at random steps, and begun again each time
        with killed_after(int(rng.integers(1, 8))): pnb.run(data(), name, tmp_path / "cut", **options)
    cut = pnb.run(data(), name, tmp_path / "cut", **options)
    assert facts(cut) == facts(whole)
    assert {k: v for k, v in cut.result.items() if k != "seconds"} == {
        k: v for k, v in whole.result.items() if k != "seconds"}


PASTED = SelfTraining(paired=True, mixing="paste", view="strong", relabel_every=5)
VARIANTS = {
    "snapshots": replace(strategies["ensemble"], name="snapshots", teacher=Teacher(source="snapshots", members=2)),
    "majority": replace(
        strategies["ensemble"], name="majority", rounds=2, teacher=Teacher(members=3, combine="majority")),
    "labels_anew": Strategy(
        "labels_anew", ClassThresholds(0.5, 0.5), SelfTraining(paired=True, ramp_up=0.5, relabel_every=5), rounds=1),
    "reliable": Strategy("reliable", ReliableImages(0.5), PASTED, teacher=Teacher(flips=True), rounds=1),
    "by_confidence": Strategy(
        "by_confidence", ClassThresholds(0.5, 0.5), SelfTraining(0.5, by_confidence=True), rounds=1),
    "everything": Strategy("everything", ClassThresholds(0.55, 0.6), FixMatch(0.5, 0.3, mixing="both", rotations="any"),
                           Moving("foreground", 0.7, 0.5), Teacher(flips=True), rounds=2, start="restart"),
    "cutmix_pasted": replace(
        strategies["copy_paste"], name="cutmix_pasted", method=CopyPaste(cutmix=True, pseudo_loss="cross_entropy")),
    "partial": replace(strategies["pu"], name="partial", prior=0.05, annotations="partial"),
    "pu_student": replace(
        strategies["pu"], name="pu_student", prior=0.05, annotations="partial", method=PositiveUnlabeled()),
    "pretrained": replace(strategies["best"], name="pretrained", teacher=Teacher(pretraining=0.5, flips=True)),
    "topaz": replace(strategies["pu"], name="topaz",
                     teacher=replace(strategies["pu"].teacher, method=PositiveUnlabeled("ge_binomial"))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_can_be_joined(name, tmp_path):
    options = dict(labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    whole = pnb.run(data(), VARIANTS[name], tmp_path / "whole", **options)
    with killed_after(19): pnb.run(data(), VARIANTS[name], tmp_path / "cut", **options)
    assert facts(pnb.run(data(), VARIANTS[name], tmp_path / "cut", **options)) == facts(whole)


# labels are made anew after 17 and 22 steps, states are saved after 16, 17, 20, 22
@pytest.mark.parametrize("kill", [18, 20, 21, 23])
def test_labels_made_anew_keep_the_decision_of_their_step(kill, tmp_path):
    options = dict(labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    whole = pnb.run(data(), VARIANTS["reliable"], tmp_path / "whole", **options)
    with killed_after(kill): pnb.run(data(), VARIANTS["reliable"], tmp_path / "cut", **options)
    again = pnb.run(data(), VARIANTS["reliable"], tmp_path / "cut", **options)
    assert facts(again) == facts(whole) and again.records()[-1].thresholds == whole.records()[-1].thresholds


# of 24 steps the first 6 restore patches, 6 more learn from labels; saved are 2, 4, 5, 6
@pytest.mark.parametrize(("kills", "restored"), [((), 6), ((3,), 6 + 1), ((6,), 6), ((9,), 6), ((2, 3, 2, 4), 6)])
def test_pretraining_that_is_interrupted_ends_alike_and_is_not_done_twice(kills, restored, tmp_path, monkeypatch):
    options, counted, honest = dict(labeled_ratio=0.34, settings=SETTINGS, device="cpu"), [], Restorer.loss
    monkeypatch.setattr(Restorer, "loss", lambda self, batch: (counted.append(self.step), honest(self, batch))[1])
    whole = pnb.run(data(), VARIANTS["pretrained"], tmp_path / "whole", **options)
    assert counted == list(range(6)) and max(m["step"] for m in whole.metrics() if m["round"] == 0) == 6
    assert sum(r.steps for r in whole.records()) == SETTINGS.steps
    counted.clear()
    for kill in kills:
        with killed_after(kill): pnb.run(data(), VARIANTS["pretrained"], tmp_path / "cut", **options)
    assert facts(pnb.run(data(), VARIANTS["pretrained"], tmp_path / "cut", **options)) == facts(whole)
    assert len(counted) == restored


def test_a_first_teacher_whose_record_could_not_be_written_is_not_trained_again(tmp_path, monkeypatch):
    options, learned, learn = dict(labeled_ratio=0.34, settings=SETTINGS, device="cpu"), [], loop.Trainer.train_step
    monkeypatch.setattr(
        loop.Trainer, "train_step", lambda self, batch: (learned.append(self.step), learn(self, batch))[1])
    with monkeypatch.context() as full, pytest.raises(OSError):
        full.setattr(pnb.Run, "add_record", lambda self, record: (_ for _ in ()).throw(OSError("disk full")))
        pnb.run(data(), VARIANTS["pretrained"], tmp_path, **options)
    assert len(learned) == 12
    ended = pnb.run(data(), VARIANTS["pretrained"], tmp_path, **options)
    assert len(learned) == SETTINGS.steps and not [*ended.folder.glob("checkpoints/pretrained*")]


SLIPS = [(lambda: Strategy("mine"), "no selector and 3 rounds; expected rounds=0"),
         (lambda: pnb.strategy("supervised", rounds=1), "no selector and 1 rounds"),
         (lambda: pnb.strategy("naive", selector=None), "no selector"),
         (lambda: pnb.strategy("supervised", annotations="partial"),
          "needs a first teacher that learns without labeled background"),
         (lambda: pnb.strategy("supervised", prior=4), "prior is 4"),
         (lambda: pnb.strategy("pu", teacher__members=3), "expected 1 with reliable_negatives"),
         (lambda: pnb.Settings(foreground_share=1.5), "foreground_share is 1.5")]
@pytest.mark.parametrize("call, said", SLIPS)
def test_what_could_not_be_followed_is_refused(call, said):
    with pytest.raises(UserError, match=said): call()


@pytest.mark.parametrize("name, changes, said",
                         [("supervised", dict(loss="nnpu"), "unknown loss 'nnpu'"),
                          ("fixmatch", dict(foreground_share=1.0), "no window shows the classes as they occur")])
def test_settings_that_a_strategy_cannot_learn_with_are_refused(name, changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        pnb.run(data(), name, tmp_path, settings=replace(SETTINGS, **changes), device="cpu")


def test_labels_without_background_are_refused(tmp_path):
    few = discs(12, 0)
    marked = pnb.Data(
        "marked",
        from_arrays([few.image(k)[0] for k in range(12)], [np.where(few.mask(k), few.mask(k), 255) for k in range(12)]),
        discs(6, 1), discs(6, 2))
    with pytest.raises(UserError, match="no background pixel in the 4"):
        pnb.run(marked, "supervised", tmp_path, labeled_ratio=0.34, settings=SETTINGS, device="cpu")


@pytest.mark.parametrize("name", ["best", "mean_teacher", "cps"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_what_says_every_pixel_keeps_every_pixel(name, classes, tmp_path):
    probs = torch.from_numpy(random_stream(0).dirichlet([1] * classes, (16, 16)).astype("float32")).permute(2, 0, 1)
    rule = strategies[name].selector.fit([store([("a", probs[1:].numpy())], tmp_path, classes)], Context())
    said = apply(rule, probs)
    assert said.ignored == 0 and torch.equal(said.target[0].long(), probs.argmax(0))


def test_a_method_that_takes_the_prior_for_the_share_of_foreground_gets_windows_of_that_share(tmp_path):
    right = store(
        ((id, data().train.mask(k)[None].astype("float32")) for k, id in enumerate(data().train.ids)), tmp_path)
    pseudo = PseudoImages(data().train, right, Rule((0.5, 0.5), images=data().train.ids))
    def uniform(method) -> torch.Tensor:
        draw = loop.batch_fn(
            Phase(number=1, steps=8, labeled=data().train, val=data().val, pseudo=pseudo, method=method), SETTINGS,
            pseudo)
        return torch.cat([b.uniform[b.is_pseudo] for b in map(draw, range(8))])
    asked, others = uniform(PositiveUnlabeled()), uniform(SelfTraining(paired=True))
    assert len(asked) == 16 and asked.all() and not others.all()


def test_cross_pseudo_supervision_is_the_sum_of_what_each_learns_from_the_other():
    "Against the formula written out, with a pass of its own for each label."
    students = torch.nn.ModuleList([build_network("unet", 1, 2, seed=k, **SMALL) for k in range(2)]).eval()
    images, masks = torch.from_numpy(
        random_stream(0).normal(size=(4, 1, 16, 16)).astype("float32")), torch.full((4, 16, 16), 255)
    masks[:2, :4] = 1
    batch = Batch(images, masks, torch.tensor([False, False, True, True]), torch.ones(4, 16, 16), torch.ones(4).bool(),
                  images[2:], images[:0])
    once, _ = method_loss(
        strategies["cps"].method, Step(students, students[0], Rule((0.5, 0.5)), index=9, steps=10), batch)
    from pseudolabel_nb.training.losses import ce_dice
    ones, labels = torch.ones(2, 16, 16), [n(images[2:]).argmax(1) for n in students]
    labeled = sum(ce_dice(n(images[:2]), masks[:2], ones, masks[:2] != 255) for n in students)
    unlabeled = sum(ce_dice(n(images[2:]), labels[1 - k], ones, ones.bool()) for k, n in enumerate(students))
    assert once.item() == pytest.approx((labeled + unlabeled).item(), rel=1e-5)


@pytest.mark.parametrize("changes", [dict(teacher__pretraining=0.9), dict()])
def test_members_that_would_get_no_step_are_refused(changes, tmp_path):
    with pytest.raises(UserError, match="3 members of the first teacher; expected some for each"):
        pnb.run(data(), pnb.strategy("ensemble", rounds=1, **changes), tmp_path, labeled_ratio=0.34,
                settings=replace(SETTINGS, steps=24 if changes else 4), device="cpu")


def test_a_first_teacher_begins_with_what_was_pretrained_but_for_its_last_layer(tmp_path):
    path = pretrain(data().train, 4, SETTINGS, tmp_path)
    made, fresh = (loop.Trainer(Phase(number=0, steps=4, labeled=data().train, val=data().val, pretrained=p), SETTINGS,
                                tmp_path / "no", "cpu").students[0].state_dict()
                   for p in (path, None))
    tensors, _ = load_tensors(path)
    taken = [n for n in made if made[n].shape == tensors[n].shape]
    assert all(torch.equal(made[n], tensors[n]) for n in taken)
    assert {n for n in made if n not in taken} and all(torch.equal(made[n], fresh[n]) for n in made if n not in taken)
    assert any(not torch.equal(made[n], fresh[n]) for n in taken)


def test_a_teacher_that_was_pretrained_is_not_shared_with_one_that_was_not(tmp_path):
    options = dict(labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    plain, pretrained = (
        pnb.begin(data(), r, tmp_path / r.name, **options) for r in (strategies["best"], VARIANTS["pretrained"]))
    for _ in pnb.rounds(plain, data()): break
    with pytest.raises(UserError, match="starts differently"): adopt_teacher(pretrained, plain)
    with pytest.raises(UserError, match=r"teacher\.pretraining"):
        branched_strategy(plain, 0, {"teacher.pretraining": 0.5})


def test_labels_made_anew_go_by_the_decision_of_the_average_that_makes_them(tmp_path, monkeypatch):
    told, honest = [], teaching.validate
    def noted(*args, **options):
        told.append((v := honest(*args, **options)).threshold)
        return v
    monkeypatch.setattr(teaching, "validate", noted)
    _, second = pnb.run(
        data(), VARIANTS["reliable"], tmp_path, labeled_ratio=0.34, settings=SETTINGS, device="cpu").records()
    assert len(told) == (second.steps - 1) // 5 and tuple(second.thresholds) == every_pixel_thresholds(2, told[-1])


def test_a_live_teacher_and_a_stored_one_of_the_same_precision_say_the_same(tmp_path):
    from pseudolabel_nb.inference.predictions import store
    from pseudolabel_nb.strategies.selection import apply
    from pseudolabel_nb.strategies.pseudo_images import PseudoImages
    images, rule = discs(2, 5), Rule((0.8, 0.6), images=("0",), by_confidence=True)
    said = [(id, random_stream(0, id).random((1, 24, 24), dtype=np.float32)) for id in images.ids]
    predictions = store(said, tmp_path)
    rule = replace(rule, images=(images.ids[0],))
    stored, live = PseudoImages(images, predictions, rule), apply(rule, predictions.probs(0))
    assert np.array_equal(stored.mask(0), live.target[0].numpy())
    assert np.array_equal(stored.weight_crop(0, 0, 0, 24, 24), live.weight[0].numpy())


@pytest.mark.parametrize(("name", "asked"), [("mean_teacher", 1), ("unimatch", 1)])
@pytest.mark.parametrize("flips", [True, False])
def test_a_live_teacher_averages_over_flips_where_the_strategy_says_so(name, asked, flips, tmp_path, monkeypatch):
    calls, honest = [], step.flip_averaged
    monkeypatch.setattr(step, "flip_averaged", lambda says: (calls.append(says), honest(says))[1])
    run = pnb.run(
        data(), pnb.strategy(name, teacher__flips=flips), tmp_path, labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    assert len(calls) == flips * asked * run.records()[1].steps


def test_a_mean_teacher_with_decay_0_is_the_student_itself(tmp_path):
    train(Phase(number=1, steps=6, labeled=data().train, val=data().val), replace(SETTINGS, ema=0.0), tmp_path)
    tensors, _ = load_tensors(tmp_path / "checkpoints" / "latest.safetensors")
    student = {
        n.removeprefix("student."): t for n, t in tensors.items() if n.startswith("student.") and t.is_floating_point()}
    assert student and all(torch.equal(t, tensors[f"average.{n}"]) for n, t in student.items())


@pytest.mark.parametrize("what", ["pseudo-labels", "student"])
def test_a_collapse_is_said_and_refused(what, tmp_path, monkeypatch):
    "The gate would take every student; the pseudo-labels hold no foreground, or the student predicts none."
    strategy = Strategy(
        "strict", ClassThresholds(1.0, 0.5) if what == "pseudo-labels" else ClassThresholds(0.2, 0.9), rounds=1)
    if what == "student":
        honest = rounds.train
        monkeypatch.setattr(
            rounds, "train",
            lambda phase, *rest: dict(honest(phase, *rest), **(dict(predicted=0.0) if phase.number else {})))
    run = pnb.run(data(), strategy, tmp_path, labeled_ratio=0.34, settings=replace(SETTINGS, gate=0.0), device="cpu")
    record = run.records()[1]
    assert not record.accepted and run.result["best_round"] == 0
    assert f"the {what} {'have' if what == 'pseudo-labels' else 'has'} collapsed" in record.warning and (
        "threshold" in record.warning or "weight" in record.warning)


def test_members_of_an_ensemble_share_the_steps_and_are_reported(tmp_path):
    run = pnb.run(data(), VARIANTS["majority"], tmp_path, labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    first, second, _ = run.records()
    assert len(first.members) == 3 and len(
        {load_tensors(tmp_path / m)[0]["model.0.conv.weight"].sum().item() for m in first.members}) == 3
    assert {
        m["member"]: m["step"] for m in read_jsonl(tmp_path / "metrics.jsonl") if m["round"] == 0} == {0: 4, 1: 4, 2: 4}
    assert set(second.agreement) == {"mean", "weighted", "majority", "unanimous"}
    assert sum(second.agreement["unanimous"]) <= sum(second.agreement["majority"])
    assert "majority" in str(second)


@pytest.mark.parametrize("wrong, reason", [
    (lambda: Strategy("r", Threshold(), Moving()), "expected a Method"),
    (lambda: Strategy("r", Threshold(), FixMatch(), rounds=1, schedule=Moving()), "there is one round"),
    (lambda: Strategy("r", Threshold(), start="again"), "start is 'again'"),
    (lambda: Strategy("r", Threshold(), teacher=Teacher(combine="reliable_negatives")), "teacher.method"),
    (lambda: replace(strategies["pu"], annotations="partial"), "prior"),
    (lambda: replace(strategies["cps"], teacher=Teacher(members=3)), "2 networks are the teachers"),
    (lambda: replace(strategies["mean_teacher"], teacher=Teacher(members=3)), "student's average is the teacher"),
    (lambda: Teacher(method=FixMatch()), "needs a teacher itself"),
    (lambda: SelfTraining(pseudo_loss="cross_entropy"), "paired"),
    (lambda: SelfTraining(mixing="paste"), "paired"),
    (lambda: SelfTraining(mixing="copy_paste"), "paired"),
    (lambda: SelfTraining(mixing="both"), "paired"),
    (lambda: SelfTraining(rotations="half"), "method.rotations"),
    (lambda: PositiveUnlabeled("nnpv"), "unknown method.risk"),
    (lambda: Strategy("r", Threshold(), prior=4), "prior is 4"),
])
def test_what_does_not_go_together_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(UserError, match=reason) as error: wrong()
    assert "\n" not in str(error.value)


def test_positive_unlabeled_losses_refuse_more_than_two_classes_before_training(tmp_path):
    three = pnb.Data("discs", discs(12, 0, 3), discs(6, 1, 3), discs(6, 2, 3))
    with pytest.raises(UserError, match="two classes"):
        pnb.run(three, "pu", tmp_path, labeled_ratio=0.34, settings=SETTINGS, device="cpu")
    assert not (tmp_path / "checkpoints").exists()


def test_another_network_is_asked_anew(tmp_path):
    networks, images = [build_network("unet", 1, 2, seed=k, **SMALL) for k in range(2)], data().train
    first = [predict(n, images, tmp_path / str(k)).quantized(0).copy() for k, n in enumerate(networks)]
    assert not np.array_equal(*first)
    for network, said in ((networks[0], first[0]), (networks[1], first[1]), (networks[0], first[0])):
        assert np.array_equal(predict(network, images, tmp_path / "one").quantized(0), said)
    stamp = (tmp_path / "one/probs.u16").stat().st_mtime_ns
    predict(networks[0], images, tmp_path / "one")
    assert (tmp_path / "one/probs.u16").stat().st_mtime_ns == stamp
    assert not np.array_equal(predict(networks[0], images, tmp_path / "one", flips=True).quantized(0), first[0])


def test_a_network_of_more_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="tells 3 classes apart, and n_classes is 2"):
        predict(build_network("unet", 1, 3, **SMALL), data().train, tmp_path / "a")
    with pytest.raises(UserError, match="tells 3 classes apart"): store([("a", np.zeros((2, 4, 4)))], tmp_path / "b")


def test_no_option_exists_that_a_method_does_not_read():
    "Every field of every method is named in its own code or in what the loop reads of a method."
    import inspect
    read_by_loop = {"view", "rotations", "relabel_every", "weight"}
    for kind in {type(s.method) for s in strategies.values()} | {PositiveUnlabeled}:
        code = inspect.getsource(kind)
        unread = {name for name in kind.__dataclass_fields__ if f"self.{name}" not in code} - read_by_loop
        assert issubclass(kind, Method) and not unread, f"{kind.__name__}: {unread}"
