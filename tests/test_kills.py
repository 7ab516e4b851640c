"""Killed with signal 9, at any operation on files: the same command again ends with the same result; nothing is left.

Each command is a process of its own that kills itself at the n-th thing it does to the folder; how many there are is
counted first. Locks, which only a living process holds, are so tried too, where tests/test_power_cuts.py has none.
"""

import contextlib
import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no signal 9"),
]

# Workers of a study are not told, so that the engine dies alone.
DRIVER = """
import os, signal, sys
root, moment = os.environ.pop("KILL_IN"), int(os.environ.pop("KILL_AT"))
count = 0

def hook(name, arguments):
    global count
    if name in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(arguments[0]).startswith(root):
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
from csham.cli import main
code = main(sys.argv[1:])
print("operations:", count, file=sys.stderr)
sys.exit(code)
"""


def call(root, words, moment=0):
    environment = {**os.environ, "KILL_IN": str(root), "KILL_AT": str(moment), "OMP_NUM_THREADS": "1"}
    environment["CSHAM_KERNELS"] = "reference"
    command = [sys.executable, "-c", DRIVER, *map(str, words)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    return found.returncode, found.stderr


def killed(root, words, result, moments, again=None, before=lambda: None):
    """Give a command whole, and once for each moment, killed and then given again; compare the results."""
    before()
    code, said = call(root, words)
    assert code == 0, said
    count = int(said.rsplit("operations:", 1)[1])
    expected = result()
    rng = random.Random(str(words[0]))
    chosen = sorted({1, count, *(rng.randint(1, count) for _ in range(moments))})
    deaths = 0
    for moment in chosen:
        subprocess.run(["rm", "-rf", str(root)], check=True)
        root.mkdir()
        before()
        code, said = call(root, words, moment)
        deaths += code == -signal.SIGKILL
        for _ in range(2):  # once to go on, and once where all is done
            code, said = call(root, again() if again else words)
            assert code == 0, (moment, count, said)
        assert same(result(), expected), (moment, count)
        left = [str(path) for path in root.rglob("*") if path.name.endswith((".tmp", ".new", ".old"))]
        assert not left, (moment, count, left)
    assert deaths >= len(chosen) - 1  # the last moments may not come: other machines do a little less
    return count


def same(left, right):
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def weights_in(folder):
    import safetensors.numpy

    return {str(p.relative_to(folder)): safetensors.numpy.load_file(p) for p in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_prepare(root, images, monkeypatch):
    monkeypatch.setenv("CSHAM_CACHE", str(root))

    def result():
        return [np.load(file) for file in sorted(root.glob("packed/*/*.npy"))]

    killed(root, ["prepare", images, "--image-size", "32", "--quiet"], result, 6)


def test_train(root, images):
    run = root / "run"
    words = (
        f"train {images} --backbone lenet5 --image-size 32 --epochs 2 --batch-size 8 --no-compile --quiet --device cpu"
    )

    def result():
        with (run / "metrics.csv").open(newline="") as file:
            rows = [(row["train_loss"], row["val_top1"]) for row in csv.DictReader(file)]
        return rows, json.loads((run / "summary.json").read_text())["top1"], weights_in(root)

    def again():
        return ["train", "--resume", run, "--quiet"] if run.exists() else [*words.split(), "--run", run]

    killed(root, [*words.split(), "--run", run], result, 8, again)


def test_epochs_that_are_added_to_a_finished_run(root, finished):
    run = root / "run"

    def result():
        summary = json.loads((run / "summary.json").read_text())
        return summary["epochs"], summary["course"], summary["top1"], weights_in(root)

    words = ["train", "--resume", run, "--epochs", "3", "--schedule", "constant", "--quiet"]
    killed(root, words, result, 6, before=lambda: shutil.copytree(finished, run))


def test_share(root, finished):
    folder = root / "shared"
    others = map(root.joinpath, map(str, itertools.count()))

    def again():
        return ["share", finished, next(others) if folder.exists() else folder]

    def result():
        return weights_in(folder), (folder / "README.md").read_text()

    killed(root, ["share", finished, folder], result, 6, again)


def test_export(root, finished):
    words = ["export", finished, "--output", root / "network.safetensors", "--format", "safetensors", "--quiet"]
    killed(root, words, lambda: weights_in(root), 6, lambda: [*words, "--force"])


def compare(root, images, *more):
    words = f"compare {images} --backbones resnet20 --attentions none,eca --image-size 16 --epochs 1 --quiet --seeds 1 "
    words += f"--batch-size 8 --no-compile --device cpu --precision fp32 --study {root / 'study'}"
    return [*words.split(), *more]


def recorded(study):
    lines = [json.loads(line) for line in (study / "records.jsonl").read_text().splitlines()]
    numbers = {
        f"{line['label']}, seed {line['seed']}": [line["status"], line["result"]["top1"], line["result"]["loss"]]
        for line in lines
    }
    assert len(lines) == len(numbers)  # each cell once
    return numbers


def studied(root):
    numbers = recorded(root / "study")
    costs = json.loads((root / "study/costs.json").read_text())
    assert (root / "study/report/index.html").stat().st_size > 10_000
    return numbers, weights_in(root), [row["network"] for row in costs["costs"]], costs["finished"]


def test_compare_and_its_costs(root, images):
    killed(root, compare(root, images), lambda: studied(root), 6)


def test_compare_by_two_jobs(root, images):
    killed(root, compare(root, images, "--jobs", "2"), lambda: studied(root), 3)


def test_compare_by_three_cells_together(root, images):
    killed(root, compare(root, images, "--jobs", "3", "--together", "--seeds", "2"), lambda: studied(root), 3)


# Imported by every process; the first worker that comes to the moment kills itself there.
WORKER = """
import atexit, os, signal, sys
root, moment, mark = os.environ["KILL_IN"], int(os.environ["WORKER_AT"]), os.environ["WORKER_MARK"]
count = 0

def hook(name, arguments):
    global count
    if name in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(arguments[0]).startswith(root):
        count += 1
        if count == moment and not os.path.exists(mark):
            os.mkdir(mark)
            os.kill(os.getpid(), signal.SIGKILL)

if "csham.study.worker" in " ".join(sys.orig_argv):
    sys.addaudithook(hook)
    atexit.register(lambda: print(count, file=open(os.environ["WORKER_COUNT"], "w")))
"""


def test_the_worker_of_several_cells(root, images, tmp_path, monkeypatch):
    """The same call starts another, in which those cells go on that were under way."""
    (tmp_path / "sitecustomize.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WORKER_COUNT", str(tmp_path / "count"))
    words = [
        *compare(root, images, "--jobs", "4", "--together", "--seeds", "2"),
        "--no-costs",
        "--checkpoint-steps",
        "2",
    ]

    def result(moment):
        mark = tmp_path / f"killed at {moment}"
        environment = {**os.environ, "KILL_IN": str(root), "WORKER_AT": str(moment), "WORKER_MARK": str(mark)}
        environment |= {"OMP_NUM_THREADS": "1", "CSHAM_KERNELS": "reference"}
        command = [sys.executable, "-m", "csham", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, (moment, done.stderr)
        assert mark.exists() == (moment > 0)
        return recorded(root / "study"), weights_in(root)

    expected = result(0)
    count = int((tmp_path / "count").read_text())
    rng = random.Random(0)
    for moment in sorted({count // 3, *(rng.randint(1, count * 9 // 10) for _ in range(5))}):
        shutil.rmtree(root)
        root.mkdir()
        assert same(result(moment), expected), (moment, count)
        left = [str(path) for path in root.rglob("*") if path.name.endswith((".tmp", ".new", ".old"))]
        assert not left, (moment, left)


def test_the_budget_control(root, images):
    """Which networks are its controls depends on times; the other cells do not."""

    def result():
        numbers, _, costs, finished = studied(root)
        chosen = {label: value for label, value in numbers.items() if "@" not in label}
        assert len(costs) >= len(chosen)
        return chosen, finished

    killed(root, compare(root, images, "--budget-control"), result, 2)


def test_a_driver_that_is_not_told_kills_nobody(root):
    code, said = call(root, ["list", "backbones"])
    assert code == 0
    assert said.rstrip().endswith("operations: 0")
    (root / "table.csv").write_text("image,label\n")
    assert call(root, ["prepare", root / "table.csv"], 1)[0] == -signal.SIGKILL
    assert call(root, ["prepare", root / "table.csv"])[0] == 2


def torchrun(*words):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "csham",
        "--",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CSHAM_KERNELS": "reference"}
    return subprocess.Popen(
        [*command, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def of_rank(number, launcher):
    """The process of a rank, among those that a launcher has started."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with contextlib.suppress(OSError):
            if f"RANK={number}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return int(pid)
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes through /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_either_process_of_torchrun(images, tmp_path, rank):
    words = (
        f"train {images} --backbone lenet5 --image-size 32 --epochs 30 --batch-size 8 --no-compile --quiet --lr 0.01 "
    )
    words = [*words.split(), "--device", "cpu", "--precision", "fp32", "--checkpoint-steps", "2"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    with torchrun(*words, "--run", str(whole)) as undisturbed:
        assert undisturbed.wait(900) == 0, undisturbed.stderr.read()[-3000:]

    with torchrun(*words, "--run", str(run)) as launcher:
        until = time.monotonic() + 300
        while not (run / "metrics.csv").exists():
            assert launcher.poll() is None, launcher.stderr.read()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(of_rank(rank, launcher.pid), signal.SIGKILL)
        launcher.communicate(timeout=300)
        assert launcher.returncode != 0
    assert not (run / "summary.json").exists()

    with torchrun("train", "--resume", str(run), "--quiet") as resumed:
        assert resumed.wait(900) == 0, resumed.stderr.read()[-3000:]
    assert same(weights_in(run), weights_in(whole))
    assert not list(run.rglob("*.tmp"))


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of Ray of two nodes with a core each, on this machine."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster
    with contextlib.suppress(Exception):  # of a node that is gone
        cluster.shutdown()


def kill_all_of(node):
    """Kill every process of a node of Ray, those that run cells among them, as if its machine were turned off."""
    import psutil

    started = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos]
    for process in [child for one in started for child in one.children(recursive=True)] + started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("victim", ["node", "head"])
def test_a_node_of_ray_or_its_head(images, tmp_path, cluster, victim):
    """Without a node its cell goes on on the other, in the same call; without the head it does in the next call."""
    words = f"compare {images} --backbones lenet5 --attentions none,eca --image-size 32 --epochs 40 --seeds 1 --quiet "
    words += "--batch-size 8 --no-compile --device cpu --precision fp32 --lr 0.01 --checkpoint-steps 2 --no-costs"
    command = [sys.executable, "-m", "csham", *words.split(), "--study"]
    whole, study = tmp_path / "whole", tmp_path / "study"
    subprocess.run([*command, whole], check=True, capture_output=True, timeout=900)

    driver = [*command, study, "--engine", "ray", "--address", cluster.address, "--cpus-per-cell", "1"]
    with subprocess.Popen(driver, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 300
        while len(list(study.glob("runs/*/metrics.csv"))) < 2:
            assert process.poll() is None, process.stderr.read()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.05)
        beginnings = {path: path.read_text() for path in study.glob("runs/*/environment.json")}
        kill_all_of(cluster.head_node if victim == "head" else next(iter(cluster.worker_nodes)))
        _, said = process.communicate(timeout=600)
    if victim == "node":
        assert process.returncode == 0, said
    else:
        assert process.returncode == 2, said
        assert f"the head of the Ray cluster, {cluster.address}, does not answer any more" in said
        again = subprocess.run([*command, study], capture_output=True, text=True, timeout=900, check=False)
        assert again.returncode == 0, again.stderr
    assert recorded(study) == recorded(whole)
    assert same(weights_in(study), weights_in(whole))
    assert beginnings == {path: path.read_text() for path in study.glob("runs/*/environment.json")}  # gone on with
    assert not list((study / "locks").glob("mark-*"))
