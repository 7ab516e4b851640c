import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from csham.errors import UserError
from csham.study.grid import Network, cell_key, expand_networks, read_seeds, with_plain
from csham.study.study_file import read_study, write_study
from csham.training.config import TrainConfig


def test_strategies_go_to_the_attentions_that_have_the_parts():
    networks = expand_networks(
        ["resnet20"], ["none", "se", "csham", "cbam:reversed"], ["sequential", "transfer"], period=3
    )
    assert [n.label for n in networks] == [
        "resnet20",
        "resnet20 + se",
        "resnet20 + csham",
        "resnet20 + csham (transfer, period 3)",
        "resnet20 + cbam (reversed)",
    ]
    assert [n.label for n in expand_networks(["resnet20"], ["se", "csham"], ["transfer"])] == [
        "resnet20 + se",
        "resnet20 + csham (transfer)",
    ]


def test_labels_and_run_folders_tell_networks_apart(make_study):
    variants = [
        {"points": ("layer?.*",)},
        {"points": ("layer*.?",)},
        {"stages": (0, 1)},
        {"stages": (0,), "gated": True},
        {"position": "post"},
        {},
    ]
    networks = [Network("resnet20", "se", **variant) for variant in variants]
    networks += [Network("resnet20"), Network("resnet20@width=1.25", instead_of="resnet20 + se")]
    assert len({n.label for n in networks}) == len(networks)
    cells = make_study(networks, [0]).cells()
    assert len({cell.name for cell in cells}) == len({cell.key for cell in cells}) == len(networks)
    assert all("/" not in cell.name and " " not in cell.name for cell in cells)
    assert [n.plain for n in networks].count(True) == 1


def test_a_plain_network_has_no_settings_of_attention():
    assert Network("resnet20", strategy="transfer", period=3, gated=True) == Network("resnet20")


def test_the_plain_network_of_every_backbone_is_added():
    se, other = Network("lenet5", "se"), Network("resnet20", "se")
    control = Network("lenet5@width=1.5", instead_of="lenet5 + se")
    networks, added = with_plain([se, Network("lenet5"), other, control])
    assert networks == [Network("lenet5"), se, control, Network("resnet20"), other]
    assert added == ["resnet20"]


def test_cells_come_seed_by_seed_and_plain_first(make_study):
    study = make_study([Network("lenet5", "se"), Network("lenet5")], [3, 1])
    assert [cell.label for cell in study.cells()] == [
        "lenet5, seed 3",
        "lenet5 + se, seed 3",
        "lenet5, seed 1",
        "lenet5 + se, seed 1",
    ]


def test_extending_keeps_the_keys_of_what_was_there(make_study):
    study = make_study()
    more = study.extended([Network("lenet5", "eca"), Network("lenet5")], [1, 2])
    assert len(more.cells()) == 9
    assert {cell.key for cell in study.cells()} < {cell.key for cell in more.cells()}


@pytest.mark.parametrize("name", [name for name in TrainConfig.__dataclass_fields__ if name != "data"])
def test_the_key_stands_for_what_changes_the_result(name):
    other = {
        "backbone": "resnet20", "attention": "se", "strategy": "entry", "period": 2, "position": "post",
        "points": ("a",), "stages": (0,), "gated": True, "pretrained": True, "weights_file": "w.pt", "recipe": "paper",
        "epochs": 3, "batch_size": 3, "lr": 3.0, "momentum": 0.3, "weight_decay": 3.0, "schedule": "steps",
        "warmup_epochs": 3.0, "milestones": (0.3,), "decay": 0.3, "label_smoothing": 0.3, "seed": 3, "image_size": 33,
        "crop": "resized", "crop_scale": 0.3, "validation": 0.3, "track_test": True, "max_bad": 3, "device": "cpu",
        "precision": "bf16", "compile": True, "channels_last": True, "checkpoint_seconds": 3.0, "checkpoint_steps": 3,
        "last_batch": "fill", "allow_leaks": True, "attention_sha256": "0" * 64, "accumulate": 3, "optimizer": "adamw",
        "backbone_lr": 0.3, "head_lr": 0.3, "attention_lr": 0.3, "layer_decay": 0.3, "freeze_backbone": 3,
        "clip_norm": 3.0, "ema": 0.3, "mixup": 0.2, "cutmix": 1.0, "augment": "rand", "class_weights": "balanced",
        "patience": 3, "continued": ("after 3 of 3 epochs: constant, lr 0.3",), "trackers": ("none",),
        "backbone_sha256": "0" * 64, "open_gates": True, "graph": True, "deterministic": True,
        "recompute_norms": True,
    }  # fmt: skip
    config = TrainConfig(data="digits")
    same = cell_key(replace(config, **{name: other[name]}), "f") == cell_key(config, "f")
    assert same == (
        name
        in {"device", "compile", "channels_last", "checkpoint_seconds", "checkpoint_steps", "max_bad", "allow_leaks"}
        | {"trackers", "graph", "deterministic", "recompute_norms"}
        | {"recipe", "weights_file"}  # their settings and their content are in it
    )


def test_a_study_from_before_a_setting_has_the_keys_it_had():
    key = "bee6f786cba8fe66"
    assert cell_key(TrainConfig(data="digits", backbone="resnet20", attention="csham", strategy="transfer"), "f") == key


def test_the_key_goes_by_content_of_data_and_weights():
    config = TrainConfig(data="digits")
    assert cell_key(config, "f") == cell_key(replace(config, data="copy/of/digits"), "f")
    assert len({cell_key(config, "f"), cell_key(config, "g"), cell_key(config, "f", "w")}) == 3
    # Of every record ever written: a change means that finished studies are trained again.
    assert cell_key(config, "f") == "9ddf50166c9d065d"


def test_a_changed_setting_is_named_with_both_values(make_study):
    study = make_study()
    assert study.changed({"epochs": 2, "lr": study.settings["lr"], "device": "cpu"}) == [("epochs", 1, 2)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("3", (0, 1, 2)), (3, (0, 1, 2)), ("5,0,5", (5, 0)), ("7,", (7,)), ([4, 2], (4, 2))],
)
def test_seeds(given, expected):
    assert read_seeds(given) == expected


@pytest.mark.parametrize("given", ["", "0", 0, -1, "-1", "1.5", "a,b", [], [True], [-1], [2**63], 10**12, 2.0, None])
def test_seeds_that_cannot_be(given):
    with pytest.raises(UserError, match="--seeds"):
        read_seeds(given)


@pytest.mark.parametrize(
    ("attentions", "strategies", "message"),
    [
        (["cbma"], [], "unknown attention 'cbma'. Did you mean 'cbam'"),
        (["none:transfer"], [], "the plain network has no strategy"),
        (["se:transfer"], [], "'se' has none"),
        (["csham:tranfer"], [], "Did you mean 'transfer'"),
        (["csham"], ["tranfer"], "Did you mean 'transfer'"),
    ],
)
def test_names_that_cannot_be_combined(attentions, strategies, message):
    with pytest.raises(UserError, match=message):
        expand_networks(["resnet20"], attentions, strategies)


def test_a_period_needs_a_transfer():
    with pytest.raises(UserError, match="--period"):
        expand_networks(["resnet20"], ["se"], period=3)


def test_a_network_reads_back_and_refuses_unknown_keys():
    network = Network("resnet20", "csham", "transfer", 3, stages=(0, -1), gated=True)
    assert Network.from_dict(network.to_dict()) == network
    with pytest.raises(UserError, match=r"unknown key of a network 'atention'. Did you mean 'attention'"):
        Network.from_dict({"backbone": "resnet20", "atention": "se"})
    with pytest.raises(UserError, match="no backbone"):
        Network.from_dict({"attention": "se"})
    with pytest.raises(UserError, match="--gated must be true or false"):
        Network.from_dict({"backbone": "resnet20", "attention": "se", "gated": "yes"})


def test_the_study_reads_back(make_study, tmp_path):
    points = Network("resnet20", "se", points=("layer1.*",))
    study = replace(make_study([Network("resnet20"), points], [0, 4]), worthwhile=1.0, command="csham compare digits")
    write_study(tmp_path, study)
    assert read_study(tmp_path) == study
    assert [c.key for c in read_study(tmp_path).cells()] == [c.key for c in study.cells()]


def edit(**changes):
    def change(content):
        for place, value in changes.items():
            *parents, name = place.split("__")
            target = content
            for parent in parents:
                target = target[parent]
            if value is None:
                del target[name]
            else:
                target[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(format=3), "format 3 is not one"),
        (edit(seedz=[0]), "unknown field 'seedz'. Did you mean 'seeds'"),
        (edit(networks=None), "networks is missing"),
        (edit(seeds=3), "seeds must be a list"),
        (edit(seeds=["x"]), "--seeds takes"),
        (edit(settings__epoch=3), "unknown setting 'epoch'. Did you mean 'epochs'"),
        (edit(settings__epochs="3"), "--epochs must be a whole number"),
        (edit(settings__backbone="lenet5"), "unknown setting 'backbone'"),
        (edit(data__images=0), "data: images is 0"),
        (edit(data__source=None), "data must hold source"),
        (edit(networks=[{"backbone": "lenet5", "attention": "csha"}]), "Did you mean 'csham'"),
        (edit(networks=["lenet5"]), "a network is a mapping"),
        (edit(worthwhile=-1), "--worthwhile"),
        (edit(command=3), "command must be text"),
    ],
)
def test_a_study_edited_into_something_else(make_study, tmp_path, change, message):
    write_study(tmp_path, make_study())
    content = yaml.safe_load((tmp_path / "study.yaml").read_text())
    change(content)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as caught:
        read_study(tmp_path)
    assert str(tmp_path / "study.yaml") in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", ""])
def test_a_study_that_is_no_yaml(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml"):
        read_study(tmp_path)


def test_no_study_names_those_nearby(make_study, tmp_path):
    (tmp_path / "here").mkdir()
    write_study(tmp_path / "here", make_study())
    with pytest.raises(UserError, match=r"there is no study .*there\. .*Studies there: .*here"):
        read_study(tmp_path / "there")
    with pytest.raises(UserError, match=r"is not a study: it has no study\.yaml"):
        read_study(tmp_path)


def test_grid_and_store_do_without_pytorch():
    code = "import csham.study.store, csham.study.grid, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
