"""A study's folder as `csham compare` leaves it, with numbers that look like those of real runs, made in no time."""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml

# Names of classes that a page, a table and a picture have to take as they are.
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><b>",
    "=cmd()",
    "100% & $x_1$ | `b` \\",
    "\"quoted\" 'too'",
    "@sum",
    "caf\u00e9 \u732b",
    "plain",
    "a\nb",
    "{{ page }}",
]
NETWORK = {
    "backbone": "resnet20",
    "attention": "none",
    "strategy": "sequential",
    "period": None,
    "position": "auto",
    "points": None,
    "stages": None,
    "gated": False,
    "instead_of": None,
}
MACHINE = ("data", "device", "compile", "channels_last", "checkpoint_seconds", "checkpoint_steps", "max_bad")
# What each attention adds to top-1 in points, to parameters, to operations and to time.
EFFECTS = {
    "none": (0.0, 0, 1.0, 1.0),
    "se": (0.75, 2300, 1.001, 1.11),
    "eca": (0.35, 27, 1.001, 1.08),
    "cbam": (-0.5, 3200, 1.004, 1.31),
    "csham": (1.1, 2800, 1.006, 1.37),
}
BACKBONES = {"resnet20": (65.0, 278_324, 81_637_888, 8.1), "resnet32": (67.5, 472_756, 138_600_000, 12.9)}
DEEPER = {"resnet20": "resnet32", "resnet32": "resnet44"}


def network(backbone="resnet20", attention="none", **settings):
    return {**NETWORK, "backbone": backbone, "attention": attention, **settings}


def networks_of(backbone):
    """Six: plain, four attentions, and a deeper plain network of the slowest one's training time."""
    return [
        network(backbone),
        network(backbone, "se"),
        network(backbone, "eca"),
        network(backbone, "cbam"),
        network(backbone, "csham", strategy="transfer"),
        network(DEEPER[backbone], instead_of=f"{backbone} + csham (transfer)"),
    ]


@dataclass
class Case:
    """What a study's folder is made of.

    Attributes:
        networks: Mappings of study.yaml.
        seeds: Of the grid.
        epochs: Rows of each history.
        classes: Their names.
        images: Test images of each class.
        failed: (network's place, seed): the error's message.
        missing: (network's place, seed) without a record.
        effect: Multiplies what attentions add.
        noise: Standard deviation of what a seed adds to one network alone, in points.
        costs: Whether costs.json is there.
        worthwhile: In points.
    """

    networks: list = field(default_factory=lambda: networks_of("resnet20"))
    seeds: tuple = (0, 1, 2)
    epochs: int = 15
    classes: list = field(default_factory=lambda: [f"class {number}" for number in range(10)])
    images: int = 100
    failed: dict = field(default_factory=dict)
    missing: set = field(default_factory=set)
    effect: float = 1.0
    noise: float = 0.25
    costs: bool = True
    worthwhile: float = 0.5


def write_study(path, case=None, **changes):
    """Write study.yaml, records.jsonl and costs.json into a new folder, and return it."""
    case = replace(case or Case(), **changes)
    path = Path(path)
    path.mkdir(parents=True)
    study = study_of(case)
    (path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), encoding="utf-8")
    with (path / "records.jsonl").open("w", encoding="utf-8") as file:
        for number, cell in enumerate(cells_of(path, case)):
            file.write(json.dumps(record_of(case, study, number, *cell), ensure_ascii=False) + "\n")
    if case.costs:
        (path / "costs.json").write_text(json.dumps(costs_of(case)), encoding="utf-8")
    return path


def study_of(case):
    """What study.yaml holds."""
    return {
        "format": 1,
        "data": {
            "source": "cifar-like",
            "classes": len(case.classes),
            "images": 60 * case.images * len(case.classes) // 10,
            "image_size": 32,
            "fingerprint": "c0ffee" + "0" * 10,
        },
        "settings": {name: value for name, value in settings_of(case).items() if name not in MACHINE},
        "networks": case.networks,
        "seeds": list(case.seeds),
        "worthwhile": case.worthwhile,
        "command": "csham compare cifar-like --backbones resnet20 --attentions none,se,eca,cbam,csham --seeds 3",
    }


def settings_of(case):
    """The settings that all cells share, resolved."""
    return {
        "data": "cifar-like",
        "pretrained": False,
        "weights_file": None,
        "recipe": "fast",
        "epochs": case.epochs,
        "batch_size": 128,
        "lr": 0.2,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "one-cycle",
        "warmup_epochs": 0.0,
        "milestones": [],
        "decay": 0.2,
        "label_smoothing": 0.0,
        "image_size": 32,
        "crop": "pad",
        "crop_scale": 0.08,
        "validation": 0.1,
        "track_test": False,
        "max_bad": 10,
        "device": "cpu",
        "precision": "fp32",
        "compile": False,
        "channels_last": True,
        "checkpoint_seconds": 60.0,
        "checkpoint_steps": None,
    }


def record_of(case, study, number, place, seed, label, key):
    """One line of records.jsonl."""
    settings = case.networks[place]
    config = {name: value for name, value in settings.items() if name != "instead_of"}
    record = {
        "format": 1,
        "key": key,
        "status": "failed" if (place, seed) in case.failed else "done",
        "label": label,
        "network": settings,
        "seed": seed,
        "config": {**settings_of(case), **config, "seed": seed},
        "data": study["data"],
        "classes": case.classes,
        "environment": environment_of(seed),
        "run": f"runs/{key}",
        "started": f"2026-11-20T{number % 24:02}:00:00+0000",
        "finished": f"2026-11-20T{number % 24:02}:45:10+0000",
        "attempts": 1,
    }
    if record["status"] == "failed":
        message = case.failed[place, seed]
        trace = f'Traceback (most recent call last):\n  File "loop.py", line 1\nRuntimeError: {message}'
        return record | {"error": {"type": "RuntimeError", "message": message, "traceback": trace}}
    return record | measured(case, settings, seed)


def measured(case, settings, seed):
    """Result, history and answers per class of a finished cell."""
    rng = np.random.default_rng([int(hashlib.sha256(repr(settings).encode()).hexdigest()[:8], 16), seed])
    start, params, flops, rate = size_of(settings)
    shared = np.random.default_rng(seed).normal(0, 0.5)  # a seed's luck, which all networks have
    goal = start + shared + case.effect * effect_of(settings)[0] + rng.normal(0, case.noise)
    skill = np.random.default_rng(7).normal(0, 8, len(case.classes)) + rng.normal(0, 2, len(case.classes))
    share = np.clip(goal + skill - skill.mean(), 0, 100) / 100
    correct = np.clip(np.round(share * case.images), 0, case.images).astype(int)
    top1 = round(100 * float(correct.sum()) / (case.images * len(case.classes)), 4)
    history = history_of(case, rng, top1, rate)
    last = metrics(case, top1, rng)
    chosen = max(history, key=lambda row: row["val_top1"])
    result = last | {
        "weights": "last epoch",
        "validation_chosen": {
            "epoch": chosen["epoch"],
            "validation_top1": chosen["val_top1"],
            "chosen_by": "validation top-1",
            **(last if chosen is history[-1] else metrics(case, max(round(top1 - 0.12, 4), 0), rng)),
        },
        "params": params,
        "flops": flops,
        "flops_matmul": flops - 500_000,
        "seconds": round(sum(row["seconds"] for row in history), 3),
        "images_per_s": round(1000 / rate, 2),
        "classes": len(case.classes),
        "bad_files": 0,
    }
    per_class = {"correct": correct.tolist(), "total": [case.images] * len(case.classes)}
    return {"result": result, "history": history, "per_class": per_class}


def metrics(case, top1, rng):
    found = {
        "loss": round(2.5 - top1 / 60, 4),
        "top1": top1,
        "macro_top1": top1,
        "top5": round(min(100, top1 + 24 + rng.normal(0, 0.2)), 4),
        "precision": round(min(100, top1 + 0.1), 4),
        "recall": top1,
        "f1": round(max(top1 - 0.15, 0), 4),
        "kappa": round(top1 / 100 - 0.01, 4),
        "images": case.images * len(case.classes),
        "absent_classes": 0,
    }
    return {name: value for name, value in found.items() if name != "top5" or len(case.classes) > 5}


def effect_of(settings):
    return (0.6, 0, 1.55, 1.36) if settings["instead_of"] else EFFECTS.get(settings["attention"], (0.2, 100, 1.0, 1.2))


def size_of(settings):
    """Start accuracy, parameters, operations and seconds for a thousand images."""
    backbone = (settings["instead_of"] or settings["backbone"]).partition(" ")[0]
    start, params, flops, rate = BACKBONES.get(backbone, BACKBONES["resnet20"])
    _, more, times, slower = effect_of(settings)
    return start, round(params * max(times, 1)) + more, round(flops * times), rate * slower


def history_of(case, rng, top1, rate):
    """Rows as in metrics.csv: saturating accuracy, falling loss, some noise."""
    rows = []
    for epoch in range(1, case.epochs + 1):
        done = epoch / case.epochs
        validation = top1 * (1 - 0.85 * math.exp(-3.5 * done)) / (1 - 0.85 * math.exp(-3.5)) + rng.normal(
            0, 2 * (1.05 - done)
        )
        loss = 0.9 + 3.3 * math.exp(-3.2 * done) + rng.normal(0, 0.02)
        rows.append(
            {
                "epoch": epoch,
                "train_loss": round(loss, 5),
                "train_top1": round(validation + 3, 4),
                "train_top5": round(min(100, validation + 25), 4),
                "val_loss": round(loss + 0.2, 5),
                "val_top1": round(validation, 4),
                "val_top5": round(min(100, validation + 23), 4),
                "lr": 0.1,
                "images_per_s": round(1000 / rate, 2),
                "seconds": round(50 * rate + rng.normal(0, 3), 2),
            }
        )
    return rows


def environment_of(seed):
    """What environment.json holds."""
    return {
        "command": f"csham train cifar-like --backbone resnet20 --seed {seed}",
        "started": "2026-11-20T00:00:00+0000",
        "versions": {"python": "3.11.7", "csham": "0.1.0.dev0", "torch": "2.15.0", "timm": "1.0.31", "numpy": "2.4.6"},
        "commit": "f2ecbe4d3620649733645c648288d6d0b086db57",
        "platform": "Linux-6.18-x86_64-with-glibc2.36",
        "device": "cpu",
        "processor": "AMD EPYC, 2 cores",
        "threads": 1,
        "processes": 1,
        "seed": seed,
        "chosen": ["cpu", "fp32", "channels_last"],
    }


def costs_of(case):
    """What costs.json holds."""
    machine = {"processor": "AMD EPYC", "cpu_capability": "AVX2", "threads": 2, "python": "3.11.7", "torch": "2.15.0"}
    machine |= {"commit": "f2ecbe4", "date": "2026-11-21"}
    return {"finished": True, "machine": machine, "costs": [cost_of(settings) for settings in case.networks]}


def cost_of(settings):
    _, params, flops, rate = size_of(settings)
    row = {"network": label_of(settings), "batch_size": 32, "precision": "fp32", "compiled": False, "device": "cpu"}
    row |= {"channels": 3, "height": 32, "width": 32, "params": params, "params_extra": 0, "flops": flops}
    row |= {"flops_matmul": flops - 500_000, "macs": flops // 2}
    for name, value in (("latency_ms", rate / 3), ("images_per_s", 3000 / rate), ("train_step_ms", 32 * rate)):
        row |= {name: value, f"{name}_q1": 0.97 * value, f"{name}_q3": 1.04 * value}
    ratios = {
        f"{name}_ratio": 1.0 for name in ("params", "flops", "flops_matmul", "latency", "inference", "train_step")
    }
    return row | {"peak_mib": 12.0 + rate, "train_peak_mib": 80.0 + 6 * rate, **ratios, "rounds": 9, "failed": ""}


def cells_of(path, case):
    """Place of the network, seed, label and key of every cell that has a record."""
    from csham.study.grid import Network
    from csham.study.study_file import read_study

    places = {Network.from_dict(settings): place for place, settings in enumerate(case.networks)}
    cells = ((places[cell.network], cell.seed, cell.network.label, cell.key) for cell in read_study(path).cells())
    return [cell for cell in cells if (cell[0], cell[1]) not in case.missing]


def label_of(settings):
    from csham.study.grid import Network

    return Network.from_dict(settings).label
