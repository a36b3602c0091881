"""Two processes for one run, on a CPU: the same rows, the same losses, the same run as one process; interrupted, it
goes on."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pseudolabel_nb.core import read_json, read_jsonl
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.inference.predictions import Predictions
from pseudolabel_nb.models.checkpoints import load_tensors

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'pseudolabel_nb[accelerate]'")

PLUGIN = '''
import json, os
from pathlib import Path
import torch
from torch import nn
from pseudolabel_nb.models.networks import register_network

class Counted(nn.Module):
    "A network without batch statistics that writes down each row that passes through it."
    def __init__(self, channels, n_classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, n_classes, 3, padding=1))
        self.encoder_features = [self.layers[0]]
    def forward(self, x):
        with open(Path(os.environ["ROWS"]) / os.environ.get("RANK", "0"), "a") as f:
            for row in x:
                f.write(json.dumps([self.training, [*row.shape], round(row.double().abs().sum().item(), 3)]) + "\\n")
        return self.layers(x)

register_network("counted")(lambda channels, n_classes: Counted(channels, n_classes))
'''
COMMON = ("--labeled-ratios", "0.25", "--learning-rates", "0.003", "--steps", "12", "--crop", "32", "--network",
          "counted", "--setting", "evaluations=12", "--setting", "gate=0", "--device", "cpu", "--threads", "1")

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    "A folder with images and the plugin."
    root, data = tmp_path_factory.mktemp("together"), micrographs(n_train=11, n_val=4, n_test=4, size=64)
    for name in ("train", "val", "test"):
        images = getattr(data, name)
        np.savez(root / f"{name}.npz", images=np.stack([images.image(i)[0] for i in range(len(images))]),
                 masks=np.stack([images.mask(i) for i in range(len(images))]))
    (root / "plugin.py").write_text(PLUGIN)
    return root


def begun(root: Path, out: Path, together: int, *more: str) -> subprocess.Popen:
    "pseudolabel-train in so many processes; what passes through the networks is written beside `out`."
    rows = out.with_name(f"{out.name}-rows")
    rows.mkdir(parents=True, exist_ok=True)
    launch = LAUNCH if together > 1 else []
    data = [x for name in ("train", "val", "test") for x in (f"--{name}-data-dir", str(root / f"{name}.npz"))]
    argv = [sys.executable, *launch, "-m", "pseudolabel_nb.cli", *data, "--output-dir", str(out), "--plugin",
            str(root / "plugin.py"), *COMMON, *more]
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | dict(ROWS=str(rows), OMP_NUM_THREADS="1")
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)


def ended(*given) -> str:
    "What the command printed, once it has ended well."
    process = begun(*given)
    said, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return said


def rows(out: Path) -> Counter:
    "How often each row has passed, over all processes."
    return Counter(line for f in out.with_name(f"{out.name}-rows").iterdir() for line in f.read_text().splitlines())


def steps(out: Path, run: str) -> np.ndarray:
    "Loss, F1 and threshold of every step of a run."
    return np.array(
        [[line[k] for k in ("loss", "f1", "threshold")] for line in read_jsonl(out / "runs" / run / "metrics.jsonl")])


STRATEGIES = "naive,mean_teacher,pu,cps"


@pytest.fixture(scope="module")
def alone(root) -> Path:
    "The runs of one process."
    ended(root, root / "alone", 1, "--strategy", STRATEGIES)
    return root / "alone"


@pytest.fixture(scope="module")
def together(root) -> tuple[Path, str]:
    "The runs of two processes, and what they printed."
    return root / "together", ended(root, root / "together", 2, "--strategy", STRATEGIES)


def test_every_row_passes_once(alone, together):
    counted = rows(together[0])
    assert counted == rows(alone)
    parts = [len(f.read_text().splitlines()) for f in (together[0].parent / "together-rows").iterdir()]
    assert len(parts) == 2 and max(parts) / sum(parts) < 0.55 # both work


@pytest.mark.parametrize("strategy", ["supervised", *STRATEGIES.split(",")])
def test_same_losses(alone, together, strategy):
    run = f"{strategy}-r0.25-s0"
    one, two = steps(alone, run), steps(together[0], run)
    assert len(one) == len(two) >= 6 # the first teacher is shared
    assert np.abs(one - two).max() < 1e-4
    assert abs(read_json(alone / "runs" / run / "result.json")["f1"]
               - read_json(together[0] / "runs" / run / "result.json")["f1"]) < 1e-4


def test_predictions_without_gaps_or_repeats(alone, together):
    one, two = (
        Predictions(out / "runs" / "naive-r0.25-s0" / "predictions" / "round-3") for out in (alone, together[0]))
    assert one.ids == two.ids
    assert max(np.abs(one.quantized(i).astype(int) - two.quantized(i)).max() for i in range(len(one))) < 65535 * 1e-4


def test_one_voice_and_one_folder(alone, together):
    out, said = together
    assert said.count("labels  strategy") == 1
    assert {p.relative_to(out) for p in out.rglob("*") if p.name != ".lock"} == {
        p.relative_to(alone) for p in alone.rglob("*") if p.name != ".lock"}
    assert read_json(out / "runs" / "naive-r0.25-s0" / "environment.json")["processes"] == 2


def test_interrupted_goes_on(root, alone, tmp_path):
    "Killed in the middle, two processes go on with what the first one wrote, to the same numbers."
    out = tmp_path / "out"
    process = begun(root, out, 2, "--strategy", "naive", "--setting", "checkpoint_every=1")
    lines = out / "runs" / "naive-r0.25-s0" / "metrics.jsonl"
    for _ in range(1200):
        if lines.exists() and len(lines.read_text().splitlines()) >= 7: break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1)
    ended(root, out, 2, "--strategy", "naive", "--setting", "checkpoint_every=1")
    again = {line["step"] + 100 * line["round"]: line for line in read_jsonl(lines)}
    assert np.abs(
        np.array([again[k]["loss"] for k in sorted(again)]) - steps(alone, "naive-r0.25-s0")[:, 0]).max() < 1e-4


def test_refused_clearly(root, tmp_path):
    process = begun(root, tmp_path / "out", 2, "--strategy", "no-such")
    _, err = process.communicate(timeout=120)
    assert process.returncode and err.count("strategy 'no-such'") == 1


GRADIENT = '''
import sys
import torch
from pseudolabel_nb.core import process_number
from pseudolabel_nb.models.checkpoints import save_tensors
from pseudolabel_nb.models.distributed import forward, share_gradients
torch.manual_seed(0)
network, x = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 3)), torch.randn(5, 1, 16, 16)
network[1].eval() # statistics are of a process's own rows
z = forward(network, x)
((z.sigmoid().sum() - 100).clamp(min=0) / (z > 0).sum()).backward()
network[1].running_mean += process_number()
share_gradients(network)
if process_number() == 0:
    save_tensors(sys.argv[1], dict({n: p.grad for n, p in network.named_parameters()}, mean=network[1].running_mean))
'''


def test_gradients_add_up_and_buffers_are_averaged(tmp_path):
    "AdamW does not see how long a gradient is, so it is looked at itself."
    (tmp_path / "step.py").write_text(GRADIENT)
    for name, launch in (("one", []), ("two", LAUNCH)):
        subprocess.run([sys.executable, *launch, str(tmp_path / "step.py"), str(tmp_path / f"{name}.safetensors")],
                       check=True, timeout=120, capture_output=True)
    one, two = (load_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("one", "two"))
    assert (one.pop("mean") - two.pop("mean")).tolist() == [-0.5] * 4
    for name in one: assert np.allclose(one[name], two[name], rtol=1e-4, atol=1e-7) and one[name].abs().max() > 0


NOTEBOOK = '''
import sys
from accelerate import notebook_launcher
def work(out):
    import torch
    from pseudolabel_nb.data.synthetic import micrographs
    from pseudolabel_nb.training.rounds import run
    from pseudolabel_nb.runs.settings import Settings
    torch.set_num_threads(1)
    run(micrographs(n_train=8, n_val=2, n_test=2, size=64), "naive", out, labeled_ratio=0.25,
        settings=Settings(steps=8, crop=32, evaluations=1), device="auto")
if __name__ == "__main__": notebook_launcher(work, (sys.argv[1],), num_processes=2, use_port=sys.argv[2])
'''


def test_notebook_launcher(tmp_path):
    (tmp_path / "cell.py").write_text(NOTEBOOK)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = dict(os.environ, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    done = subprocess.run([sys.executable, tmp_path / "cell.py", tmp_path / "run", port], capture_output=True,
                          text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2 and (
        tmp_path / "run" / "result.json").exists()
