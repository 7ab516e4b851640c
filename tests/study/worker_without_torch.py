"""Stands in for csham.study.worker: speaks its language, trains nothing, and does what the backbone's seed asks for."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from csham.study.record import failed_record, now
from csham.study.store import Store

store = Store(sys.argv[-1])
deeds = json.loads(os.environ["DEEDS"])  # by seed: what to do at the first, second, ... attempt


def say(event, **content):
    print(json.dumps({"event": event, "key": key, **content}), flush=True)


if "no start" in deeds.values():
    print("no such device", file=sys.stderr)
    sys.exit(3)
study, key = store.study, ""
cells = {cell.key: cell for cell in study.cells()}
for line in sys.stdin:
    task = json.loads(line)
    if task is None:
        break
    key = task["key"]
    cell = cells[key]
    claim = store.claim(cell.key, task["attempts"])
    if claim is None:
        say("ended", status=None, leaving=False)
        continue
    with claim:
        log = Path(os.environ["DIARY"])
        with log.open("a") as file:
            print(cell.seed, os.getpid(), os.environ.get("OMP_NUM_THREADS"), file=file)
        wanted = deeds.get(str(cell.seed), [])
        tried = sum(line.split()[0] == str(cell.seed) for line in log.read_text().splitlines())
        deed = wanted[tried - 1] if tried <= len(wanted) else "done"
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "fatal":
            say("fatal", message="the disk is full")
            sys.exit(2)
        if deed.startswith("room"):
            say("room", runs=int(deed.split()[1]))
            time.sleep(1)  # the engine gives more meanwhile
        if deed == "step":
            say("step", where="epoch 1/1", fraction=0.0, images_per_s=1.0)
        if deed.startswith("need"):
            say("need", seconds=float(deed.split()[1]))
        if deed == "sleep" or deed.startswith("need"):
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            try:
                say("step", where="epoch 1/1", fraction=0.5, images_per_s=1.0)
                time.sleep(60)
            finally:
                log.write_text(log.read_text() + "stopped\n")
        status = "failed" if deed in ("fail", "fail and leave") else "done"
        record = failed_record(
            study,
            cell,
            {"type": "E", "message": "m"},
            run=f"runs/{cell.name}",
            started=now(),
            attempts=task["attempts"] + 1,
        )
        if status == "done":
            del record["error"]
            record |= {
                "status": "done",
                "classes": ["ant", "bee", "cow"],
                "result": {"top1": 50.0, "seconds": 1.0, "params": 1000},
                "history": [{"epoch": 1, "train_loss": 1.0, "train_top1": 50.0, "val_top1": 50.0, "val_loss": 1.0}],
                "per_class": {"correct": [1, 1, 1], "total": [2, 2, 2]},
                "environment": {"threads": 1},
            }
        store.append(record)
    leaving = deed == "fail and leave"
    say("ended", status=status, leaving=leaving)
    if leaving:
        break
