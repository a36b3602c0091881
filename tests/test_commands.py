"""The commands as a user meets them: what they write, how they go on after a kill or a full disk, and one line for
whatever cannot work.

Most commands run in processes that are forked from a server which has imported torch already; a few are started from
nothing, as a shell does it.
"""
import json, multiprocessing, os, random, re, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from pseudolabel_nb import arguments, cli, inputs
from pseudolabel_nb.runs.run import locked

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("--labeled-ratios", "0.5", "--strategy", "naive", "--steps", "12", "--crop", "64", "--n-iterations", "1",
         "--learning-rates", "0.003", "--device", "cpu")
RESULTS = ("strategy labeled_ratio seed n_labeled n_pseudo particle_ratio_real "
           "particle_ratio_pseudo precision recall f1 f1_supervised gain best_round seconds").split()
SUMMARY = ("strategy labeled_ratio n_seeds f1_mean f1_sd f1_supervised_mean gain_mean "
           "gain_sd gain_low gain_high image_low image_high gain_over_noise positives "
           "p_sign_flip p_t p_holm seeds_needed f1_all_foreground evidence").split()
FILE_EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")

# ---- running a command

def tiny_networks() -> None:
    "Two small networks: one that learns, and one that never sees foreground."
    from torch import nn

    from pseudolabel_nb.models.networks import register_network
    @register_network("tiny")
    def tiny(channels, n_classes):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, n_classes, 3, padding=1))
    @register_network("blind")
    def blind(channels, n_classes):
        last = nn.Conv2d(channels, n_classes, 1)
        nn.init.zeros_(last.weight)
        last.bias.data[:] = -8
        last.bias.data[0] = 8
        return last

def in_child(name: str, argv: list[str], said: str, limits: dict) -> None:
    """Run a command in this process with its output in files; `limits`: bytes a file, the number of the file event at
    which to be killed, the current folder."""
    for n in (1, 2): os.dup2(os.open(f"{said}.{n}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), n)
    import torch
    torch.set_num_threads(1)
    tiny_networks()
    if most := limits.get("bytes"): resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    if "folder" in limits: os.chdir(limits["folder"])
    if "watch" in limits: count_events(limits["watch"], limits.get("kill_at"), f"{said}.events")
    sys.argv = [f"pseudolabel-{name}", *argv]
    sys.exit(getattr(cli, name)())

def count_events(out: str, kill_at: int | None, file: str) -> None:
    """Write down what is opened, renamed and removed below `out`, one line an event; be killed right before one of
    these events."""
    seen, log = 0, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    def hook(event, args):
        nonlocal seen
        if (event not in FILE_EVENTS or not isinstance(args[0], (str, os.PathLike))
                or not os.fspath(args[0]).startswith(out)):
            return
        seen += 1
        os.write(log, f"{event} {os.fspath(args[0])}\n".encode())
        if seen == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

class Ended:
    "How a command ended."
    def __init__(self, code: int, out: str, err: str): self.code, self.out, self.err = code, out, err

@pytest.fixture(scope="session")
def server():
    "Processes that need not import torch."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            [__name__, "torch._dynamo", "pandas", "scipy.stats", "filelock", "safetensors.torch",
             "pseudolabel_nb.experiments.sweep"])
        yield context

@pytest.fixture
def command(server, tmp_path):
    "Runs `pseudolabel-train` (or another) to its end."
    def run(*argv, name="train", **limits) -> Ended:
        said = str(tmp_path / "said")
        p = server.Process(target=in_child, args=(name, list(map(str, argv)), said, limits))
        p.start()
        p.join(120)
        return Ended(p.exitcode, *(Path(f"{said}.{n}").read_text() for n in (1, 2)))
    return run

@pytest.fixture
def train(command, tmp_path):
    "Runs `pseudolabel-train` on a folder, quickly, and expects it to end well and say nothing on stderr."
    def run(data, *argv, out=None, **limits) -> Ended:
        ended = command(
            "--data-dir", data, *QUICK, "--network", "tiny", "--output-dir", out or tmp_path / "out", *argv, **limits)
        assert (ended.code, ended.err) == (0, "")
        return ended
    return run

@pytest.fixture
def refuse(command, tmp_path):
    "Expects one line on stderr that holds all `parts`, code 2, and nothing half-written."
    def run(*argv, parts=(), name="train", **limits) -> str:
        out = tmp_path / "out"
        rest = (*QUICK, "--network", "tiny", "--output-dir", out) if name == "train" else ()
        ended = command(*rest, *argv, name=name, **limits)
        assert ended.code == 2, ended.err
        assert ended.err.endswith("\n") and ended.err.count("\n") == 1 and ended.err.startswith("error: "), ended.err
        assert len(ended.err) < 700
        for part in parts: assert str(part) in ended.err
        whole(out)
        return ended.err
    return run

def started(*argv, name="train") -> subprocess.Popen:
    "The command as a shell starts it in the foreground (where Ctrl-C is not ignored), with the small networks."
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_commands; "
            f"test_commands.tiny_networks(); from pseudolabel_nb.cli import {name}; sys.exit({name}())")
    env = dict(
        os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)

def plain(*argv, name="train") -> Ended:
    "The command from nothing, with nothing added."
    env = dict(
        os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    p = subprocess.run([sys.executable, "-c", f"import sys; from pseudolabel_nb.cli import {name}; sys.exit({name}())",
                        *map(str, argv)],
                       env=env, capture_output=True, text=True, timeout=120)
    return Ended(p.returncode, p.stdout, p.stderr)

def whole(out: Path) -> None:
    "Every file below `out` is complete, and no temporary file is left."
    from safetensors import safe_open
    for p in out.rglob("*"):
        assert ".part" not in p.name, p
        if p.suffix == ".json": json.loads(p.read_bytes())
        if p.suffix == ".jsonl":
            # a torn last line is allowed: whoever appends cuts it off
            for line in p.read_bytes().split(b"\n")[:-1]: json.loads(line)
        if p.suffix == ".safetensors":
            with safe_open(p, "pt") as f: assert list(f.keys())
        if p.suffix == ".csv": assert len(pd.read_csv(p))

def results(out: Path, *left_out) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv", dtype=str).drop(columns=list(left_out))

def same(a: Path, b: Path) -> None:
    "The two folders hold the same files, results, weights and predictions, bit for bit; seconds differ."
    names = [sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) for out in (a, b)]
    assert names[0] == names[1]
    assert results(a, "seconds").equals(results(b, "seconds"))
    for name in names[0]:
        if name.suffix in (".safetensors", ".u16", ".i32"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name

# ---- small data

def picture(rng, shape=(64, 64), classes=1, foreground=True) -> tuple[np.ndarray, np.ndarray]:
    "An image with a bright square for each class, and its mask of 0 and 1, 2, …"
    mask = np.zeros(shape, "u1")
    for c in range(classes * foreground):
        y, x = (int(rng.integers(max(1, s - s // 4))) for s in shape)
        mask[y:y + max(1, shape[0] // 4), x:x + max(1, shape[1] // 4)] = c + 1
    return (mask.astype(float) * 60 + rng.integers(60, 100, shape)).astype("u1"), mask

def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array) if path.suffix == ".tif" else Image.fromarray(array).save(path)

def mask_folder(root: Path, seed=0, classes=1, foreground=True, shape=(64, 64), **counts) -> Path:
    "images/ and masks/ a split."
    rng = np.random.default_rng(seed)
    for split, n in (counts or dict(train=8, val=4, test=3)).items():
        for k in range(n):
            image, mask = picture(rng, shape, classes, foreground)
            save(root / split / f"images/{split}_{k}.png", image)
            save(root / split / f"masks/{split}_{k}.png", mask if classes > 1 else mask * 255)
    return root

def coco_folder(root: Path, n=6, splits=("train", "val", "test"), **changes) -> Path:
    "A COCO folder a split, with a box an image; `changes` replace parts of the training document."
    rng = np.random.default_rng(0)
    for split in splits:
        boxes = []
        for k in range(n):
            image, mask = picture(rng)
            y, x = np.argwhere(mask)[0].tolist()
            boxes.append([x, y, *np.ptp(np.argwhere(mask), 0)[::-1].tolist()])
            save(root / split / f"{split}_{k}.png", image)
        document = dict(
            images=[dict(id=k, file_name=f"{split}_{k}.png", width=64, height=64) for k in range(n)],
            categories=[dict(id=1, name="particle")],
            annotations=[
                dict(id=k, image_id=k, category_id=1, iscrowd=0, segmentation=[], bbox=b) for k, b in enumerate(boxes)])
        (root / split / "_annotations.coco.json").write_text(
            json.dumps({**document, **(changes if split == "train" else {})}))
    return root

@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path: return mask_folder(tmp_path_factory.mktemp("data"))

# ---- what is written

def test_tables(train, data, tmp_path):
    said = train(data, "--strategy", "naive,limited,class_balanced", "--seeds", "0,1")
    table, summary = results(tmp_path / "out"), pd.read_csv(tmp_path / "out/summary.csv")
    assert list(table) == RESULTS and list(summary) == SUMMARY
    assert (len(table) == 8 and set(summary["n_seeds"]) == {2}
            and not summary["evidence"].str.contains("no evidence").any())
    numbers = table.set_index(["strategy", "seed"]).astype(float)
    for (strategy, seed), row in numbers.iterrows():
        run = json.loads((tmp_path / f"out/runs/{strategy}-r0.5-s{seed}/result.json").read_text())
        assert (row["f1"], row["n_labeled"], row["best_round"]) == (run["f1"], 4, run["best_round"])
        assert row["f1_supervised"] == numbers.loc[("supervised", seed), "f1"] and row["gain"] == pytest.approx(
            row["f1"] - row["f1_supervised"])
    assert (numbers.loc["naive", "n_pseudo"] == 4).all() and (numbers.loc["supervised", "n_pseudo"] == 0).all()
    naive = summary.set_index("strategy").loc["naive"]
    assert (naive["gain_mean"] == pytest.approx(numbers.loc["naive", "gain"].mean())
            and naive["gain_low"] < naive["gain_mean"] < naive["gain_high"])
    tail = said.out.split("labels  strategy")[1]
    assert "calling every pixel foreground gives F1 11.8 %" in tail and str(tmp_path / "out/summary.csv") in tail
    assert sorted(os.listdir(tmp_path / "out/runs")) == sorted(
        f"{s}-r0.5-s{n}" for s in ("supervised", "naive", "limited", "class_balanced") for n in (0, 1))
    whole(tmp_path / "out")

def test_one_seed_no_test_set(train, tmp_path):
    said = train(mask_folder(tmp_path / "d", train=6, val=4)).out
    assert "no test set: of 4 validation images 2 choose (threshold, round, gate) and the other 2 report" in said
    assert said.count("one seed: no evidence") == 1
    assert pd.read_csv(
        tmp_path / "out/summary.csv").set_index("strategy").loc["naive", "evidence"] == "one seed: no evidence"

def test_again_trains_nothing(train, data, tmp_path):
    first = train(data, "--learning-rates", "0.003,0.01")
    stamps = lambda: {
        p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*") if p.suffix in (
            ".safetensors", ".jsonl", ".u16") or p.name == "result.json"}
    before = stamps()
    table, began = (tmp_path / "out/results.csv").read_bytes(), time.perf_counter()
    again = train(data, "--learning-rates", "0.003,0.01")
    assert time.perf_counter() - began < 10
    assert len(before) > 8 and stamps() == before and (tmp_path / "out/results.csv").read_bytes() == table
    assert ("round 0" in first.out and "round 0" not in again.out
            and first.out.split("labels  strategy")[1] == again.out.split("labels  strategy")[1])
    # seeds that are added later keep the rate and are tabled together
    train(data, "--learning-rates", "0.003,0.01", "--seeds", "1")
    assert set(results(tmp_path / "out")["seed"]) == {"0", "1"}

def test_another_experiment_in_the_same_folder(train, refuse, data, tmp_path):
    train(data)
    for change, named in ((("--steps", "14"), "steps was "), (("--confidence-threshold", "0.8"), "0.8"),
                          (("--mask-values", "nonzero"), "was "),
                          (("--set", "method.weight=0.5"), "method.weight was 1.0, now 0.5")):
        refuse(
            "--data-dir", data, *change, parts=["was begun with another config", named, "choose another output folder"])
    # to save space: the scores stay, and stay what they were
    for folder in (tmp_path / "out/runs").glob("*/checkpoints"): shutil.rmtree(folder)
    refuse("--data-dir", data, "--steps", "14", parts=["was begun with another config", "steps was "])

def test_unlabeled_folder(train, data, tmp_path):
    rng = np.random.default_rng(3)
    for k in range(5): save(tmp_path / f"more/u{k}.png", picture(rng)[0])
    said = train(data, "--unlabeled-data-dir", tmp_path / "more").out
    assert ("unlabeled  5       0 " in said
            and results(tmp_path / "out").set_index("strategy").loc["naive", "n_pseudo"] == str(8 - 4 + 5))
    predicted = [
        json.loads(line)["id"]
        for line in (tmp_path / "out/runs/naive-r0.5-s0/predictions/round-1/index.jsonl").read_text().splitlines()]
    assert {f"unlabeled/u{k}.png" for k in range(5)} < set(predicted)

def test_splits_named_one_by_one(train, command, data, tmp_path):
    train(data, out=tmp_path / "a")
    named = [a for s in ("train", "val", "test") for a in (f"--{s}-data-dir", data / s)]
    assert command(*named, *QUICK, "--network", "tiny", "--output-dir", tmp_path / "b").code == 0
    assert results(tmp_path / "a", "seconds").equals(results(tmp_path / "b", "seconds"))
    for p in (mask_folder(tmp_path / "color", train=8) / "train/images").glob("*.png"):
        save(p, np.stack([np.array(Image.open(p))] * 3, -1))
    mixed = command("--train-data-dir", tmp_path / "color/train", "--val-data-dir", data / "val", *QUICK, "--network",
                    "tiny", "--output-dir", tmp_path / "c")
    assert (
        mixed.code == 0
        and [line[-1] for line in mixed.out.splitlines() if line.startswith(("train ", "val ", "test "))] == ["3"] * 3)

def test_multiclass(train, tmp_path):
    root = mask_folder(tmp_path / "d", classes=3)
    said = train(root, "--multiclass", "--strategy", "naive,class_balanced").out
    assert "background, class 1, class 2, class 3" in said
    kept = json.loads((tmp_path / "out/runs/naive-r0.5-s0/rounds.jsonl").read_text().splitlines()[1])["kept"]
    assert len(kept) == 4
    merged = train(root, "--mask-values", "nonzero", out=tmp_path / "merged").out
    assert "background, foreground" in merged

def test_coco_boxes_from_nothing(tmp_path):
    "The whole command with the default network, started as a shell starts it."
    ended = plain("--data-dir", coco_folder(tmp_path / "d"), *QUICK, "--output-dir", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    assert "6 boxes drawn as ellipses" in ended.out and len(results(tmp_path / "out")) == 2
    ellipse = results(tmp_path / "out").loc[0, "particle_ratio_real"]
    assert 0.7 < float(ellipse) / (15 * 15 / 64**2) < 0.9  # π / 4 of the boxes
    whole(tmp_path / "out")

def test_help_version_and_strategies():
    for name in ("train", "diagnose"):
        ended = plain("--help", name=name)
        assert (ended.code, ended.err) == (0, "") and "example: pseudolabel-" in ended.out
        assert ("None)" not in ended.out and "False)" not in ended.out
                and "[" not in ended.out.split("options:")[1].replace("[0, 1]", ""))
    text = "".join(plain("--help").out.split())  # lines are broken anywhere
    for shown in ("0.05,0.10", "naive,limited,class_balanced", "0.001,0.003", "0.70",
                  *(f"--{k.replace('_', '-')}{v}" for k, v in arguments.demo_defaults.items())):
        assert shown in text
    for own in ("0.70innaive,limitedandweighted", "3inmost,1wheretheteacher", "weak,strongornone",
                "thatofthelabeledones"):
        assert own in text
    from pseudolabel_nb.strategies.strategy import strategies
    from pseudolabel_nb.strategies.strategy_files import with_threshold
    listed = plain("--list-strategies").out.splitlines()
    assert [line.split()[0] for line in listed] == list(strategies) and all(len(line.split()) > 3 for line in listed)
    # as --help says
    assert [name for name, r in strategies.items() if with_threshold(r, 0.81) != r] == ["limited", "naive", "weighted"]
    assert all(r.rounds == (1 if r.method.online else 3) for r in strategies.values() if r.selector)
    assert plain("--version").code == 0

# ---- strategies of one's own, changed and joined

PLUGIN = """
from dataclasses import dataclass
import numpy as np
from torch import nn
from pseudolabel_nb.models.networks import register_network
from pseudolabel_nb.strategies import Rule, Selector, register_strategy

@register_network("one_layer")
def one_layer(channels, n_classes): return nn.Conv2d(channels, n_classes, 3, padding=1)

@register_strategy("odd_ones", rounds=1, method__weight=0.3)
@dataclass(frozen=True)
class OddOnes(Selector):
    "Every second image. No reason."
    threshold: float = 0.6
    def fit(self, members, context): return Rule((self.threshold,) * members[0].n_classes, members[0].ids[::2])
"""
MOVING = dict(kind="Moving", field="foreground", start=0.8, stop=0.6)
JOINED = ("--set", f"schedule={json.dumps(MOVING)}", "--set", "method.weight=0.5")

def config(out: Path, name: str) -> dict:
    return json.loads((out / f"runs/{name}-r0.5-s0/config.json").read_text())["strategy"]
def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

def test_plugin_file(train, refuse, data, tmp_path):
    plugin = written(tmp_path / "own/odd.py", PLUGIN.replace("import numpy as np", "import helper_of_odd"))
    written(tmp_path / "own/helper_of_odd.py", "")  # found beside the file
    argv = ("--plugin", plugin, "--strategy", "odd_ones,naive", "--network", "one_layer", "--confidence-threshold",
            "0.8", "--set", "selector.threshold=0.55")
    said = train(data, *argv).out
    assert ("2 pseudo-labeled" in said
            and results(tmp_path / "out").set_index("strategy").loc["odd_ones", "n_pseudo"] == "2")
    made = config(tmp_path / "out", "odd_ones")
    assert made["selector"] == dict(kind="OddOnes", threshold=0.55) and (
        made["method"]["weight"], made["about"]) == (0.3, "Every second image")
    assert train(data, *argv).out.count("round 0") == 0  # the same command goes on
    refuse("--data-dir", data, *argv[2:], parts=["unknown strategy 'odd_ones'", "naive"])

def test_plugin_module(command, refuse, data, tmp_path):
    written(tmp_path / "own/parts/odd.py", PLUGIN)
    listed = command("--plugin", "parts.odd", "--list-strategies", folder=tmp_path / "own")
    assert (listed.code, listed.err) == (0, "") and "odd_ones         Every second image\n" in listed.out
    refuse("--data-dir", data, "--plugin", "parts.odd", folder=tmp_path,
           parts=["--plugin parts.odd", "no module 'parts'", "ending in .py"])
    refuse("--data-dir", data, "--plugin", "parts.even", folder=tmp_path / "own", parts=["no module 'parts.even'"])

PLUGIN_SLIPS = dict(syntax=("x = (", ["SyntaxError", "odd.py, line 1"]),
                    name=("\n\nnump.zeros(1)", ["odd.py, line 3", "NameError", "nump"]),
                    missing=("import nump", ["odd.py, line 1", "No module named 'nump'"]),
                    taken=(PLUGIN.replace("odd_ones", "naive"), ["odd.py, line 11", "'naive'", "choose another"]),
                    plain=(PLUGIN.replace("@dataclass(frozen=True)\n", ""), ["OddOnes", "@dataclass(frozen=True)"]),
                    no_fit=(PLUGIN.replace("def fit", "def fitt"), ["OddOnes has no fit"]),
                    part=(PLUGIN.replace("method__weight=0.3", "method__wieght=1"), ["'wieght'", "weight"]),
                    name_of_folder=(PLUGIN.replace("odd_ones", "../odd"), ["'../odd'", "letters"]),
                    exits=("raise SystemExit('enough')", ["SystemExit", "enough"]))
@pytest.mark.parametrize("text, parts", PLUGIN_SLIPS.values(), ids=PLUGIN_SLIPS)
def test_plugin_slips(refuse, tmp_path, text, parts):
    refuse(
        "--demo", "--plugin", written(tmp_path / "odd.py", text), parts=[f"--plugin {tmp_path / 'odd.py'}: ", *parts])
    assert not (tmp_path / "out").exists()

def test_missing_plugin_file(refuse, tmp_path):
    refuse("--demo", "--plugin", tmp_path / "odd.py", parts=["odd.py: no such file", "check the path"])

def test_strategy_files(train, refuse, data, tmp_path):
    "The same in TOML, in JSON, on the command line, and as a run has written it."
    toml = written(tmp_path / "a.toml",
                   'base = "class_balanced"\nmethod.weight = 0.5\n[schedule]\n'
                   'kind = "Moving"\nfield = "foreground"\nstart = 0.8\nstop = 0.6\n')
    as_json = written(
        tmp_path / "b.json", json.dumps({"base": "class_balanced", "method": {"weight": 0.5}, "schedule": MOVING}))
    train(data, "--strategy", f"{toml},{as_json},class_balanced", "--n-iterations", "2")
    made = {name: config(tmp_path / "out", name) for name in ("a", "b")}
    assert (made["a"] == {**made["b"], "name": "a"} and made["a"]["schedule"] == dict(MOVING, shape="linear")
            and made["a"]["rounds"] == 2)
    records = [json.loads(line) for line in (tmp_path / "out/runs/a-r0.5-s0/rounds.jsonl").read_text().splitlines()]
    assert [r["thresholds"] for r in records] == [[], [0.8, 0.8], [0.8, 0.6]]
    train(data, "--strategy", "class_balanced", *JOINED, "--n-iterations", "2", out=tmp_path / "set")
    assert config(tmp_path / "set", "class_balanced") == {**made["a"], "name": "class_balanced"}
    train(
        data, "--strategy", tmp_path / "out/runs/a-r0.5-s0/config.json", "--n-iterations", "2", out=tmp_path / "again")
    assert config(tmp_path / "again", "a") == made["a"]
    refuse("--data-dir", data, "--strategy", f"{toml},{written(tmp_path / 'other/a.toml', toml.read_text())}",
           parts=["strategy a is given twice"])

FILES = dict(
    field=('base = "naive"\nmethod.wieght = 1', ["'wieght'", "weight"]),
    value=('base = "naive"\nmethod.weight = "half"', ["method.weight is 'half'", "a number", "1.0"]),
    kind=('base = "naive"\nselector = {kind = "Best"}', ["selector", "'Best'", "Threshold"]),
    inner=('base = "naive"\nselector = {kind = "Limited", ratio = "two"}', ["selector.ratio is 'two'", "1.0"]),
    base=('base = "naiv"', ["'naiv'", "class_balanced"]), nothing=("rounds = 2", ["base", "class_balanced"]),
    toml=("base = naive", ["not TOML", "line 1"]), joint=('base = "naive"\nrefresh = "step"', ["'refresh'", "method"]),
    moved=('base = "naive"\n[schedule]\nkind = "Moving"\nfield = "foreground"',
           ["'foreground'", "Threshold", "threshold"]),
    name=('base = "naive"\nname = "../../mine"', ["'../../mine'", "letters"]),
    true=('base = "naive"\nrounds = true', ["rounds is True", "whole number"]))
@pytest.mark.parametrize("text, parts", FILES.values(), ids=FILES)
def test_strategy_file_slips(refuse, tmp_path, text, parts):
    refuse(
        "--demo", "--strategy", written(tmp_path / "a.toml", text), parts=[f"error: {tmp_path / 'a.toml'}: ", *parts])
    assert not (tmp_path / "out").exists()

def test_strategy_file_is_no_strategy(refuse, tmp_path):
    for text, part in (("{base", "not JSON"), ("[1]", "fields by name"), ('{"base": 3}', "unknown base"),
                       ('{"kind": "Strategy", "selector": null, "teacher": {"kind": "Student"}}',
                        "unknown kind 'Student'")):
        refuse("--demo", "--strategy", written(tmp_path / "a.json", text), parts=[tmp_path / "a.json", part])
    refuse("--demo", "--strategy", tmp_path / "gone.toml", parts=["gone.toml: no such file", "check the path"])

def test_what_is_given_for_all(train, data, tmp_path):
    "Rounds and prior for every strategy; the threshold where there is a single constant one; else each keeps its own."
    train(data, "--strategy", "naive,limited,class_balanced,curriculum", "--confidence-threshold", "0.8", "--prior",
          "0.1", "--n-iterations", "2")
    made = {name: config(tmp_path / "out", name)
            for name in ("naive", "limited", "class_balanced", "curriculum", "supervised")}
    assert [made[n]["selector"]["threshold"] for n in ("naive", "limited")] == [0.8, 0.8]
    assert made["class_balanced"]["selector"]["foreground"] == 0.6 and made["curriculum"]["schedule"]["start"] == 0.9
    assert {(m["rounds"], m["prior"]) for n, m in made.items() if n != "supervised"} == {(2, 0.1)} and (
        made["supervised"]["rounds"], made["supervised"]["prior"]) == (0, None)

def test_what_is_not_given_is_the_strategies_own():
    from pseudolabel_nb.strategies.strategy import strategies, strategy
    parse = lambda *argv: inputs.strategies_of(arguments.train_parser().parse_args(argv))
    names = ",".join(strategies)
    assert parse("--strategy", names) == list(strategies.values())
    online = [strategy("naive", name="online", method={"kind": "FixMatch"}, rounds=1)]
    given = arguments.train_parser().parse_args(["--n-iterations", "5", "--confidence-threshold", "0.9"])
    assert [inputs._as_asked(r, given, {}) for r in online] == online
    assert parse("--set", "name=mine", "--strategy", "naive")[0].name == "mine"
    for changes, part, value in ((("start=restart",), "start", "restart"),
                                 (("method.relabel_every=9",), "method", None),
                                 (("prior=null", "annotations=complete"), "prior", None)):
        made = parse("--strategy", "naive", *(a for c in changes for a in ("--set", c)))[0]
        assert value is None or getattr(made, part) == value
    assert made.prior is None

# ---- going on

def test_killed_anywhere(train, command, tmp_path):
    """kill -9 right before file events, four that are delicate and some chosen at random: the same command then ends as
    if nothing had happened."""
    root, more = mask_folder(tmp_path / "d", train=20, val=4, test=3), (
        "--labeled-ratios", "0.1", "--n-iterations", "2", "--learning-rates", "0.003,0.01")
    train(root, *more, out=tmp_path / "unbroken")
    counted = tmp_path / "counted"
    ask = lambda out, **limits: command(
        "--data-dir", root, *QUICK, "--network", "tiny", *more, "--output-dir", out, **limits)
    assert ask(counted, watch=str(counted)).code == 0
    events = (tmp_path / "said.events").read_text().splitlines()
    assert len(events) > 100
    # thinned predictions, the end of a run, a table
    ends = ("os.rename .*round-1[.]part$", "os.remove .*latest.safetensors$", "open .*result.json.*part$",
            "os.rename .*results.csv.*part$")
    chosen = ([next(n for n, e in enumerate(events, 1) if re.match(end, e)) for end in ends]
              + random.Random(0).sample(range(1, len(events)), 4))
    for n, moment in enumerate(chosen):
        out = tmp_path / f"killed{n}"
        assert ask(out, watch=str(out), kill_at=moment).code == -signal.SIGKILL
        ended = ask(out)
        assert (ended.code, ended.err) == (0, ""), moment
        same(out, tmp_path / "unbroken")
        whole(out)

def test_killed_again_and_again(train, command, tmp_path):
    root, out = mask_folder(tmp_path / "d"), tmp_path / "out"
    train(root, out=tmp_path / "unbroken")
    moments, killed = random.Random(1), 0
    while (ended := command("--data-dir", root, *QUICK, "--network", "tiny", "--output-dir", out, watch=str(out),
                            kill_at=moments.randrange(50, 150))).code == -signal.SIGKILL:
        killed += 1
        assert killed < 40, "what is done must not be done again"
    assert (ended.code, ended.err) == (0, "") and killed >= 2
    same(out, tmp_path / "unbroken")
    whole(out)

def wait_for(path: Path, lines: int, process: subprocess.Popen) -> None:
    "Until the file has so many lines."
    for _ in range(2400):
        if path.exists() and path.read_text().count("\n") >= lines: return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise TimeoutError(path)

def halt(process: subprocess.Popen, out: Path) -> None:
    "Stop the process, but not in the middle of writing a file."
    for _ in range(200):
        process.send_signal(signal.SIGSTOP)
        if not list(out.rglob("*.part")): return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise TimeoutError(out)

def test_ctrl_c_and_a_second_process(refuse, train, data, tmp_path):
    out, more = tmp_path / "out", ("--steps", "400")
    p = started("--data-dir", data, *QUICK, "--network", "tiny", *more, "--output-dir", out)
    wait_for(out / "runs/supervised-r0.5-s0/metrics.jsonl", 3, p)
    halt(p, out)
    refuse("--data-dir", data, *more, parts=[out, "another process is working", "wait for it"])
    p.send_signal(signal.SIGINT)
    p.send_signal(signal.SIGCONT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err == "stopped; the same command goes on where it was\n"
    assert not (out / "runs/naive-r0.5-s0/result.json").exists()
    whole(out)
    train(data, *more)
    train(data, *more, out=tmp_path / "unbroken")
    same(out, tmp_path / "unbroken")
    # five evaluations, one perhaps repeated: it did not start again
    assert len((out / "runs/supervised-r0.5-s0/metrics.jsonl").read_text().splitlines()) <= 6
    with locked(out): refuse("--data-dir", data, *more, parts=[out, "another process is working"])

def test_full_disk(refuse, train, data, tmp_path):
    "No file may grow beyond a limit; without it the same command goes on."
    lines = {refuse("--data-dir", data, bytes=most).split(": ")[1].split("/")[-1] for most in (200, 3000, 9000)}
    assert len(lines) > 1  # it failed in different files
    train(data)
    train(data, out=tmp_path / "unbroken")
    assert results(tmp_path / "out", "seconds").equals(results(tmp_path / "unbroken", "seconds"))

def test_full_file_system(refuse, data, train, tmp_path):
    "A real file system without room, where one may be mounted."
    (tmp_path / "out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", tmp_path / "out"],
                      capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        refuse("--data-dir", data, parts=[tmp_path / "out", "No space left on device", "make room"])
        subprocess.run(["mount", "-o", "remount,size=20m", tmp_path / "out"], check=True)
        train(data)
    finally: subprocess.run(["umount", tmp_path / "out"], check=True)

# ---- odd, but it works

def test_images_of_all_kinds(train, tmp_path):
    "Narrower than a pixel pair, smaller and larger than window and tile, 16 bit, color beside gray."
    rng, root = np.random.default_rng(0), tmp_path / "d"
    shapes = [(1, 3), (1, 1), (90, 1), (20, 30), (300, 70), (17, 129), (64, 64), (64, 64)]
    for split, kinds in dict(train=(0, 1, 2, 3), val=(0, 1), test=(1, 0)).items():
        for k, shape in enumerate(shapes):
            image, mask = picture(rng, shape)
            kind = kinds[k % len(kinds)]
            if kind: image = image.astype("u2") * 200
            if kind > 1: image = np.stack([image, image // 2, image // 3], -1)
            save(root / split / f"images/{split}_{k}.{'tif' if kind else 'png'}", image)
            save(root / split / f"masks/{split}_{k}.png", mask * 255)
    said = train(root, "--tile", "64", "--strategy", "naive,limited,class_balanced").out
    assert "1 × 1 to 300 × 70" in said and len(results(tmp_path / "out")) == 4

def test_one_labeled_image_and_one_for_validation(train, tmp_path):
    said = train(mask_folder(tmp_path / "d", train=4, val=1, test=2), "--labeled-ratios", "0.25").out
    assert "refused — validation is a single image or group" in said and "give more validation images" in said
    assert results(tmp_path / "out").set_index("strategy").loc["naive", "best_round"] == "0"
    said = train(
        mask_folder(tmp_path / "g", train=4, val=4, test=2), "--group-regex", "^([a-z]+)_", out=tmp_path / "groups").out
    assert "refused — validation is a single image or group" in said

def test_nothing_unlabeled(train, data):
    said = train(data, "--labeled-ratios", "1.0", "--strategy", "naive,limited,class_balanced").out
    assert said.count("there are no unlabeled images, so the student learns from labels alone") == 3

def test_all_predicted_empty(train, data, tmp_path):
    said = train(
        data, "--network", "blind", "--strategy", "naive,limited,class_balanced", "--learning-rates", "1e-9").out
    table = results(tmp_path / "out").set_index("strategy")
    assert float(table.loc["naive", "particle_ratio_pseudo"]) == 0
    assert "no choice of images meets the prior" in said
    assert (
        json.loads((tmp_path / "out/runs/naive-r0.5-s0/result.json").read_text())["verdict"] == "too little foreground")

# ---- what cannot work

SLIPS = [
    (["--strategy", "naiv"], ["'naiv'", "class_balanced"]), (["--seeds", ""], ["--seeds", "at least one"]),
    (["--seeds", "-1"], ["--seeds", "-1", "at least 0"]), (["--seeds", "0,x"], ["--seeds", "x"]),
    (["--labeled-ratios", "5"], ["--labeled-ratios", "5 % is written 0.05"]), (["--labeled-ratios", "nan"], ["nan"]),
    (["--labeled-ratios", "0.5,0.01"], ["0.01 of 8", "raise it"]), (["--steps", "many"], ["--steps", "many"]),
    (["--steps", "2", "--n-iterations", "3"], ["2 steps", "raise --steps"]),
    (["--n-iterations", "0"], ["--n-iterations", "at least 1"]),
    (["--confidence-threshold", "7"], ["--confidence-threshold"]), (["--nonsense"], ["--nonsense", "--help"]),
    (["--threads", "0"], ["--threads"]), (["--device", "tpu"], ["'tpu'", "--device cpu"]),
    (["--tile", "50"], ["tile", "multiple of 16"]), (["--crop", "50"], ["crop", "multiple of 16"]),
    (["--network", "vgg"], ["'vgg'", "unet"]), (["--augment", "all"], ["'all'", "weak"]), (["--gate", "75"], ["gate"]),
    (["--batch-size", "0"], ["batch_size"]), (["--learning-rates", "-1"], ["learning_rate"]),
    (["--set", "method.wieght=1"], ["wieght", "weight"]),
    (["--set", "selector.threshold=7"], ["threshold is 7", "0.7"]), (["--set", "method.weight"], ["="]),
    (["--set", "method.weight=half"], ["method.weight", "half", "1.0"]), (["--set", "teacher.flips=maybe"], ["false"]),
    (["--set", "selector=1"], ["selector.threshold"]),
    (["--set", "rounds=2.5"], ["rounds=2.5", "rounds is 2.5", "a whole number"]),
    (["--set", "rounds.first=1"], ["rounds", "'first'"]), (["--set", "prior=4"], ["prior is 4", "0.04"]),
    (["--set", "selector={\"kind\": \"Best\"}"], ["selector", "'Best'", "Threshold"]),
    (["--set", "refresh=step"], ["'refresh'", "method"]), (["--set", "method.mixing=paste"], ["method.paired=true"]),
    (["--set", "method.relabel_every=2.5"], ["relabel_every is 2.5"]),
    (["--set", "method.weight=NaN"], ["method.weight", "NaN"]), (["--set", "name=a/b"], ["'a/b'", "letters"]),
    (["--strategy", "naive,limited", "--set", "name=one"], ["one is given twice"]),
    (["--strategy", "naive", *JOINED], ["'foreground'", "Threshold"]), (["--prior", "4"], ["--prior", "0.05"]),
    (["--demo"], ["--demo", "--data-dir"]), (["--unlabeled-data-dir", "/nowhere"], ["/nowhere", "check the path"]),
    (["--groups", "tissue"], ["tissue"]), (["--group-regex", "("], ["regular expression"]),
    (["--mask-values", "white"], ["'white'", "nonzero"]),
    (["--learning-rates", "1e30"], ["nan", "--learning-rates", "1e+30"]),
    (["--learning-rates", "0.003,1e30"], ["nan", "--learning-rates", "1e+30"])]

@pytest.mark.parametrize("argv, parts", SLIPS, ids=[" ".join(a) for a, _ in SLIPS])
def test_slips(refuse, train, data, tmp_path, argv, parts):
    refuse("--data-dir", data, *argv, parts=parts)
    # said before anything was trained to its end
    assert not list((tmp_path / "out").rglob("*.csv")) and not list((tmp_path / "out").glob("runs/*/rounds.jsonl"))

def test_mended_command_uses_the_same_folder(refuse, train, data):
    refuse("--data-dir", data, "--learning-rates", "1e30", parts=["--learning-rates"])
    refuse("--data-dir", data, "--network", "vgg", parts=["vgg"])
    train(data)

def test_no_data_named(refuse): refuse(parts=["--data-dir", "--train-data-dir", "--demo"])
def test_missing_folder(refuse, tmp_path):
    refuse("--data-dir", tmp_path / "gone", parts=[tmp_path / "gone", "check the path"])

@pytest.mark.parametrize("splits, parts",
                         [(dict(train=4), ["--val-data-dir"]), (dict(val=4), ["--train-data-dir"]),
                          (dict(train=4, val=1), ["1 images of 1 group", "test set"])],
                         ids=["no val", "no train", "one val"])
def test_splits_missing(refuse, tmp_path, splits, parts):
    refuse("--data-dir", mask_folder(tmp_path / "d", **splits), parts=parts)

def test_output_is_a_file(refuse, data, tmp_path):
    (tmp_path / "f").touch()
    for out in (tmp_path / "f", tmp_path / "f/g"):
        refuse("--data-dir", data, "--output-dir", out, parts=[out, "choose another folder"])

DOCUMENTS = dict(not_json=("{not json", ["not JSON"]), no_images=('{"images": [], "annotations": []}', ["empty"]),
                 lists_only=("[1]", ["a list"]), no_keys=("{}", ["annotations"]))
@pytest.mark.parametrize("text, parts", DOCUMENTS.values(), ids=DOCUMENTS)
def test_annotation_file(refuse, tmp_path, text, parts):
    (coco_folder(tmp_path / "d") / "train/_annotations.coco.json").write_text(text)
    refuse("--data-dir", tmp_path / "d", parts=["train/_annotations.coco.json", "export", *parts])

def entry(**changes): return {**dict(id=0, file_name="train_0.png", width=64, height=64), **changes}
def box(*bbox): return dict(id=17, image_id=0, category_id=1, iscrowd=0, segmentation=[], bbox=bbox)
LISTS = dict(words=(dict(categories=["particle"]), ["categories holds 'particle'"]),
             table=(dict(categories={"1": "particle"}), ["categories is a dict"]),
             parents=(dict(categories=[dict(id=1, name="particle", supercategory=["x"])]), ["supercategory", "['x']"]),
             passwd=(dict(images=[entry(file_name="../../etc/passwd")]), ["../../etc/passwd", "leads out of"]),
             absolute=(dict(images=[entry(file_name="/etc/passwd")]), ["/etc/passwd", "leads out of"]),
             twice=(dict(images=[entry(), entry(id=1)]), ["train_0.png is listed 2 times", "merge"]),
             missing=(dict(images=[entry(file_name="gone.png")]), ["gone.png", "put the images there"]),
             size=(dict(images=[entry(width=32)]), ["64 × 32", "64 × 64"]),
             outside=(dict(annotations=[box(70, 0, 5, 5)]), ["annotation 17", "outside", "--on-invalid skip"]),
             negative=(dict(annotations=[box(10, 20, -3, 8)]),
                       ["annotation 17", "[10, 20, -3, 8]", "must be > 0", "--on-invalid skip"]),
             nan=(dict(annotations=[box(1, 2, float("nan"), 4)]), ["annotation 17", "finite"]))
@pytest.mark.parametrize("changes, parts", LISTS.values(), ids=LISTS)
def test_annotations(refuse, tmp_path, changes, parts):
    refuse("--data-dir", coco_folder(tmp_path / "d", **changes), parts=["train/_annotations.coco.json", *parts])

def test_invalid_boxes_left_out(train, tmp_path):
    root = coco_folder(
        tmp_path / "d", annotations=[dict(box(10, 20, 8, 8), image_id=k, id=k) for k in range(6)] + [box(1, 2, -3, 4)])
    assert "1 unusable annotations left out" in train(root, "--on-invalid", "skip").out

def test_a_link_to_nothing(refuse, tmp_path):
    "A link that the user put into a folder of images is followed; one that leads nowhere is refused."
    root = mask_folder(tmp_path / "d")
    (root / "train/images/train_0.png").unlink()
    (root / "train/images/train_0.png").symlink_to(tmp_path / "gone.png")
    refuse("--data-dir", root, parts=["train_0.png"])

def test_truncated_image(refuse, tmp_path):
    root = mask_folder(tmp_path / "d")
    for p in (root / "train/images").glob("*.png"): p.write_bytes(p.read_bytes()[:800])
    refuse("--data-dir", root, parts=["train/images/train_", "truncated", "copy or export it again"])
    for p in (root / "train/images").glob("*.png"): p.write_bytes(b"")
    refuse("--data-dir", root, parts=["train/images/train_0.png", "empty file"])

def test_mask_of_another_size(refuse, tmp_path):
    save(mask_folder(tmp_path / "d") / "train/masks/train_3.png", np.zeros((64, 32), "u1"))
    refuse("--data-dir", tmp_path / "d", parts=["train_3.png", "64 × 32", "64 × 64", "same size"])

def test_same_name_twice(refuse, tmp_path):
    save(mask_folder(tmp_path / "d") / "train/images/train_0.tif", np.zeros((64, 64), "u1"))
    refuse("--data-dir", tmp_path / "d", parts=["train_0", "same name", "rename"])

def test_image_in_two_splits(refuse, tmp_path):
    root = mask_folder(tmp_path / "d")
    for kind in ("images", "masks"):
        (root / f"test/{kind}/train_0.png").write_bytes((root / f"train/{kind}/train_0.png").read_bytes())
    refuse("--data-dir", root, parts=["train_0.png is in train and in test", "remove it"])

@pytest.mark.parametrize("split, parts",
                         [("train", ["labeled masks", "no foreground", "raise the labeled ratio"]),
                          ("val", ["validation masks", "no foreground"]), ("test", ["test masks", "no foreground"])])
def test_no_foreground(refuse, train, tmp_path, split, parts):
    root = mask_folder(tmp_path / "d")
    for p in (root / split / "masks").glob("*.png"): save(p, np.zeros((64, 64), "u1"))
    refuse("--data-dir", root, parts=parts)
    for p in (root / split / "masks").glob("*.png"): save(p, np.eye(64, dtype="u1") * 255)
    train(root)  # mended, the same command goes on in the same folder

def test_no_pickle(refuse, tmp_path):
    mask_folder(tmp_path / "d", val=4, test=3)
    (tmp_path / "d/train").mkdir()
    np.savez(tmp_path / "train.npz", images=np.array([None, print], dtype=object), masks=np.zeros((2, 64, 64)))
    refuse("--train-data-dir", tmp_path / "train.npz", "--val-data-dir", tmp_path / "d/val",
           parts=["train.npz", "pickles are never loaded"])

# ---- pseudolabel-diagnose

@pytest.mark.parametrize("side, verdict, advice",
                         [(6, "too little foreground", "class-balanced"), (13, "reasonable", "half to twice"),
                          (16, "reasonable", "half to twice"), (30, "too much foreground", "raise the threshold")])
def test_diagnose(command, tmp_path, side, verdict, advice):
    for name, s in dict(pseudo=side, real=13).items():
        mask = np.zeros((64, 64), "u1")
        mask[:s, :s] = 255
        for k in range(2): save(tmp_path / name / f"{k}.png", mask)
    ended = command(tmp_path / "pseudo", tmp_path / "real", name="diagnose")
    assert (ended.code, ended.err) == (0, "")
    ratios = [f"{100 * s * s / 64**2:.2f} %" for s in (13, side)]
    assert all(r in ended.out for r in ratios) and verdict in ended.out and advice in ended.out

@pytest.mark.parametrize("kept", [True, False])
def test_diagnose_a_run_whose_images_were_reduced(train, command, data, tmp_path, kept):
    train(data, "--longest", "48", "--strategy", "naive", "--seeds", "0", "--labeled-ratios", "0.5")
    if not kept: shutil.rmtree(tmp_path / "out/prepared")
    before = sorted(p for p in (tmp_path / "out").rglob("*") if p.name != ".lock")
    ended = command(tmp_path / "out/runs/naive-r0.5-s0", name="diagnose")
    assert (ended.code, ended.err) == (0, "") and "without the images" not in ended.out and "calibration" in ended.out
    # a temporary folder took its place
    if not kept: assert sorted(p for p in (tmp_path / "out").rglob("*") if p.name != ".lock") == before

def test_pixels_of_no_size(refuse, data):
    for wrong in ("0", "-2", "nan"):
        refuse(
            "--data-dir", data, "--pixel", wrong, "--working-pixel", "4", parts=["--pixel", "expected a number over 0"])

def test_diagnose_slips(refuse, tmp_path):
    refuse(tmp_path / "gone", tmp_path, name="diagnose", parts=["gone", "check the path"])
    refuse(tmp_path, name="diagnose", parts=["real_masks", "--help"])
    for name in ("a", "b"): save(tmp_path / name / "0.png", np.zeros((8, 8), "u1"))
    refuse(tmp_path / "a", tmp_path / "b", name="diagnose", parts=["real masks", "no foreground"])


def test_ctrl_c_is_heard_where_exceptions_are_dropped(monkeypatch):
    "In an object's __del__ Python drops the KeyboardInterrupt; the next step asks again."
    from pseudolabel_nb.core import hearing_interrupts, stop_if_asked

    class Deaf:
        def __del__(self): signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with hearing_interrupts():
            Deaf()
            with pytest.raises(KeyboardInterrupt): stop_if_asked()
        stop_if_asked() # forgotten after the block
    finally: signal.signal(signal.SIGINT, before)
