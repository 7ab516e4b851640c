"""A study is made, gone on with after any crash, and edited by hand in sight."""

import subprocess
import sys

import pytest
import torch

from csham.backbones import create_model
from csham.errors import UserError
from csham.study.grid import Network
from csham.study.setup import Request, check_records, set_up
from csham.study.store import Store

SETTINGS = {"epochs": 1, "recipe": "quick", "precision": "fp32"}


@pytest.fixture
def go(tmp_path):
    """Function that gives a command again; returns the set-up study."""

    def call(**more):
        networks = (Network("lenet5"), Network("lenet5", "se"))
        request = {"data": "digits", "folder": tmp_path / "study", "networks": networks, "seeds": (0, 1)}
        if (tmp_path / "study/study.yaml").exists():
            request = {"folder": tmp_path / "study"}
        else:
            request["settings"] = SETTINGS
        return set_up(Request(**request | more), note=pytest.fail, preparing=lambda *_: None)

    return call


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_recipe_attaches_what_is_named_its_way(go, tmp_path):
    """By gates for fine-tuning, also where the study is extended; not where something else is said."""
    weights = tmp_path / "w.pt"
    torch.save(create_model("lenet5", num_classes=10, image_size=32).state_dict(), weights)
    tuned = {**SETTINGS, "recipe": "finetune", "weights_file": str(weights)}
    named = {"networks": (), "backbones": ("lenet5",), "settings": tuned}
    study = go(**named, attentions=("none", "se"), folder=tmp_path / "open", attached={"gated": False}).study
    assert [network.gated for network in study.networks] == [False, False]
    study = go(**named, attentions=("none", "se")).study
    assert [(network.attention, network.gated) for network in study.networks] == [("none", False), ("se", True)]
    assert study.settings["optimizer"] == study.cells()[0].config.optimizer
    study = go(attentions=("eca",)).study
    assert [network.label for network in study.networks] == ["lenet5", "lenet5 + se (gated)", "lenet5 + eca (gated)"]


def test_a_study_that_fine_tunes_needs_weights(go):
    with pytest.raises(UserError, match="recipe finetune starts from trained weights"):
        go(settings={**SETTINGS, "recipe": "finetune"})


def test_networks_that_cannot_be_built_are_refused_with_the_reason_before_anything_is_written(go, tmp_path):
    lent = Network("lenet5", "csham", strategy="transfer")
    reason = r"^lenet5 \+ csham \(transfer\) cannot be built: strategy 'transfer' needs a stage with two"
    with pytest.raises(UserError, match=reason):
        go(networks=(Network("lenet5"), lent))
    assert not (tmp_path / "study").exists()
    before = go().study
    with pytest.raises(UserError, match=reason):
        go(networks=(Network("lenet5", "eca"), lent))
    assert Store(tmp_path / "study").study == before


def test_networks_that_a_study_has_are_not_built_again(go, monkeypatch):
    go()
    built = []
    monkeypatch.setattr(Network, "build", lambda self, **_: built.append(self.label))
    go(networks=(Network("lenet5", "se"), Network("lenet5", "eca")), seeds=(2,))
    assert built == ["lenet5 + eca"]


def test_new_networks_are_built_outside_the_lock_and_leave_random_numbers_alone(go, tmp_path, monkeypatch):
    go()
    build, built = Network.build, []

    def locked(self, **sizes):
        with Store(tmp_path / "study").changing_study():
            built.append(self.label)
        return build(self, **sizes)

    monkeypatch.setattr("csham.study.store._WAIT_SECONDS", 0)
    monkeypatch.setattr(Network, "build", locked)
    before = torch.get_rng_state()
    go(networks=(Network("lenet5", "eca"),))
    assert built == ["lenet5 + eca"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_study_from_before_the_optimizers_settings_goes_on(go, tmp_path):
    study = go().study
    later = (
        "optimizer",
        "backbone_lr",
        "head_lr",
        "attention_lr",
        "layer_decay",
        "freeze_backbone",
        "clip_norm",
        "ema",
    )
    path = tmp_path / "study/study.yaml"
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip().partition(":")[0] not in (*later, "accumulate")]
    assert len(kept) == len(lines) - len(later) - 1
    path.write_text("".join(kept))
    setup = go()
    assert [cell.key for cell in setup.study.cells()] == [cell.key for cell in study.cells()]


KILLED = """
import sys
from csham.study.grid import Network
from csham.study.setup import Request, set_up
import os, signal
from pathlib import Path
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
settings = {"epochs": 1, "recipe": "quick", "precision": "fp32"}
request = Request(data="digits", folder=Path(sys.argv[1]), networks=(Network("lenet5"),), settings=settings)
set_up(request, note=print, preparing=lambda *_: None)
"""


def test_a_process_killed_while_it_wrote_the_study_does_not_block_it(go, tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "study")], check=False)
    assert ended.returncode == -9
    left = {path.name for path in (tmp_path / "study").iterdir()}
    assert len(left) == 2
    assert "locks" in left
    assert go().store.exists
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"locks", "study.yaml"}


def test_a_folder_of_something_else_is_still_left_alone(go, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study/.thesis.tmp").write_text("!")
    with pytest.raises(UserError, match="neither a study nor empty"):
        go()
    assert [path.name for path in (tmp_path / "study").iterdir()] == [".thesis.tmp"]


def test_an_edit_is_said_once_and_counts(go, tmp_path):
    go()
    assert go().notes == ()
    replace_in(tmp_path / "study/study.yaml", "worthwhile: 0.5", "worthwhile: 1.5")
    replace_in(tmp_path / "study/study.yaml", "seeds:\n- 0\n", "seeds:\n- 5\n- 0\n")
    setup = go()
    assert setup.notes == (f"{tmp_path / 'study/study.yaml'} was edited: it counts as it is now",)
    assert (setup.study.worthwhile, setup.study.seeds) == (1.5, (5, 0, 1))
    assert go().notes == ()
    assert Store(tmp_path / "study").study == setup.study


@pytest.mark.parametrize("attention", ["", "  attention: se\n"], ids=["the-plain-network", "one-that-lacks-its-plain"])
def test_a_name_that_nothing_has_is_told_with_the_file_that_says_it(go, tmp_path, attention):
    plan = go(networks=(Network("lenet5", "se"),)).store.path / "study.yaml"
    replace_in(plan, f"backbone: lenet5\n{attention}", f"backbone: 5tenel\n{attention}")
    with pytest.raises(UserError, match=r"study\.yaml: unknown backbone '5tenel'"):
        go()
    replace_in(plan, "backbone: 5tenel\n", "backbone: lenet5\n")
    with pytest.raises(UserError, match=r"^unknown backbone 'lenet6'"):
        go(networks=(Network("lenet6"),))


def test_a_study_from_before_edits_were_seen_is_gone_on_with(go, tmp_path):
    study = go().study
    path = tmp_path / "study/study.yaml"
    head, _, lines = path.read_text().partition("\n")
    assert head.startswith("# csham wrote this")
    path.write_text(lines)
    assert go().notes  # a file of today without its first line is an edited one
    path.write_text(lines.replace("worthwhile: 0.5", "worthwhile: 1.5").replace("format: 2", "format: 1"))
    setup = go()
    assert setup.notes == ()
    assert setup.study.worthwhile == 1.5
    assert setup.study.cells() == study.cells()


def record_of(cell, study, **more):
    data = {"classes": 10, "images": 1797, "image_size": 32, "fingerprint": study.data.fingerprint}
    head = {"format": 2, "key": cell.key, "status": "done", "label": cell.network.label, "seed": cell.seed}
    return head | {"data": data, "config": cell.config.to_dict(), "result": {"top1": 50.0}} | more


def test_an_edit_that_the_records_contradict_is_refused_and_stays_seen(go, tmp_path):
    study = go().study
    Store(tmp_path / "study").append(record_of(study.cells()[0], study))
    replace_in(tmp_path / "study/study.yaml", "label_smoothing: 0.0", "label_smoothing: 0.1")
    text = (tmp_path / "study/study.yaml").read_text()
    for _ in range(2):
        with pytest.raises(UserError, match=r"label_smoothing is 0.0 there, and 0.1 in the study. Put study.yaml back"):
            go()
        assert (tmp_path / "study/study.yaml").read_text() == text


@pytest.mark.parametrize("name", ["classes", "images", "image_size"])
def test_the_data_is_that_of_the_records(go, tmp_path, name):
    study = go().study
    record = record_of(study.cells()[0], study)
    assert check_records(study, [record], tmp_path) == []
    record["data"][name] += 1
    with pytest.raises(UserError, match=rf"study.yaml says data: {name}: \d+, and the records have \d+. Put it back"):
        check_records(study, [record], tmp_path)


def test_a_study_cut_short_takes_no_defaults(go, tmp_path):
    go()
    path = tmp_path / "study/study.yaml"
    lines = path.read_text().splitlines(keepends=True)
    for number in range(1, len(lines) - 1):  # the last line is the command
        path.write_text("".join(lines[:number]))
        with pytest.raises(UserError, match=r"study\.yaml"):
            go()
    for line in lines:
        name = line.strip().partition(":")[0]
        if line.startswith("  ") and name in SETTINGS:
            path.write_text("".join(other for other in lines if other is not line))
            with pytest.raises(UserError, match=rf"study.yaml: settings: {name} is missing"):
                go()
