from itertools import pairwise

import pytest
import yaml

from csham.errors import UserError
from csham.training.config import TrainConfig, read_settings, resolve
from csham.training.recipes import RECIPES
from csham.training.steps import fit_batch


def test_the_paper_recipe_is_the_published_one():
    config = resolve({"data": "cifar100", "recipe": "paper"})
    config = fit_batch(config, 45_000)
    assert (config.epochs, config.batch_size, config.lr, config.momentum) == (200, 128, 0.1, 0.9)
    assert (config.weight_decay, config.warmup_epochs, config.decay) == (5e-4, 1.0, 0.2)
    assert [m * config.epochs for m in config.milestones] == pytest.approx([60, 120, 160])


def test_every_recipe_makes_valid_settings():
    for name in RECIPES:
        assert resolve({"data": "digits", "recipe": name}).recipe == name


def test_a_recipe_that_was_given_leaves_nothing_of_another_one_in_the_file():
    """Rates of sgd would let adamw diverge."""
    file = resolve({"data": "digits", "recipe": "finetune", "attention": "se"}).to_dict()
    quick = resolve({"recipe": "quick"}, file)
    assert quick.to_dict() == {
        **resolve({"data": "digits", "recipe": "quick", "attention": "se"}).to_dict(),
        **{
            "gated": True,  # a network's setting, which the file has
        },
    }
    back = resolve({"recipe": "finetune"}, quick.to_dict())
    assert back.to_dict() == file


def test_a_recipe_gates_attention_where_there_is_some():
    given = {"data": "digits", "recipe": "finetune"}
    assert not resolve(given).gated
    assert resolve({**given, "attention": "se"}).gated
    assert not resolve({**given, "attention": "se", "gated": False}).gated
    assert not resolve({}, {**given, "attention": "se", "gated": False}).gated


@pytest.mark.parametrize("settings", [{"recipe": "finetune"}, {"freeze_backbone": 1}])
def test_what_needs_trained_weights_is_refused_without(settings, tmp_path):
    (tmp_path / "w.pt").touch()
    given = {"data": "digits", "backbone": "resnet18", **settings}
    with pytest.raises(UserError, match=r"--pretrained takes the published weights of resnet18, --weights-file FILE"):
        resolve(given).check_names()
    resolve({**given, "pretrained": True}).check_names()
    resolve({**given, "weights_file": str(tmp_path / "w.pt")}).check_names()


def test_a_warm_up_that_the_schedule_has_no_place_for_is_refused():
    with pytest.raises(UserError, match=r"--warmup-epochs: one-cycle has a rise of its own"):
        resolve({"data": "digits", "warmup_epochs": 2})
    assert resolve({"data": "digits", "warmup_epochs": 2, "schedule": "cosine"}).warmup_epochs == 2
    assert resolve({"recipe": "quick"}, {"data": "digits", "recipe": "paper", "warmup_epochs": 2}).warmup_epochs == 0


def test_given_wins_over_file_wins_over_recipe():
    file = {"data": "cifar10", "recipe": "paper", "lr": 0.3, "seed": 5}
    config = resolve({"lr": 0.4}, file)
    assert (config.data, config.lr, config.seed, config.epochs) == ("cifar10", 0.4, 5, 200)


def test_a_recipe_that_was_given_wins_over_the_whole_file():
    config = resolve({"recipe": "quick"}, {"data": "cifar10", "recipe": "paper", "epochs": 200, "seed": 5})
    assert (config.epochs, config.seed) == (5, 5)


def test_a_batch_that_a_file_gives_stays_under_another_recipe_of_the_file():
    assert resolve({}, {"data": "digits", "recipe": "quick", "batch_size": 16}).batch_size == 16
    assert resolve({"recipe": "quick"}, {"data": "digits", "batch_size": 16}).batch_size == "auto"


def test_yaml_round_trip(tmp_path):
    config = resolve({"data": "digits", "recipe": "paper", "compile": False, "image_size": 32})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert resolve({}, read_settings(tmp_path / "config.yaml")) == config


def test_its_file_can_be_read_by_people():
    text = resolve({"data": "Bilder/Käfer", "milestones": [0.5]}).to_yaml()
    assert text.startswith("data: Bilder/Käfer\n")
    assert text.index("epochs:") < text.index("lr:") < text.index("seed:")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, "--epochs must be a whole number, got 1.5"),
        ({"epochs": True}, "--epochs must be a whole number, got True"),
        ({"epochs": "3"}, "--epochs must be a whole number, got '3'"),
        ({"batch_size": 1}, "--batch-size must be at least 2"),
        ({"batch_size": "small"}, "--batch-size must be a whole number or 'auto', got 'small'"),
        ({"last_batch": "keep"}, "unknown last_batch 'keep'"),
        ({"lr": 0}, "--lr must be above 0"),
        ({"lr": float("nan")}, "--lr must be a finite number"),
        ({"lr": float("inf")}, "--lr must be a finite number"),
        ({"lr": "high"}, "--lr must be a number"),
        ({"validation": 1.0}, "--validation must be from 0 to below 1"),
        ({"validation": -0.1}, "--validation must be from 0 to below 1"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"image_size": 4}, "--image-size must be from 8 to 1024"),
        ({"augment": "trivialaugment"}, "unknown augment 'trivialaugment'. Did you mean 'trivial'"),
        ({"class_weights": "auto"}, "unknown class_weights 'auto'"),
        ({"mixup": -0.2}, "--mixup must be 0, or from 0.001 to 1000, got -0.2"),
        ({"crop": "center"}, "unknown crop 'center'"),
        ({"crop_scale": 0.0}, "--crop-scale must be above 0, at most 1, got 0.0"),
        ({"crop_scale": 1.5}, "--crop-scale must be above 0"),
        ({"milestones": [0.6, 0.3]}, "--milestones must be rising"),
        ({"milestones": 0.6}, "--milestones must be a list of numbers"),
        ({"compile": "maybe"}, "--compile must be true or false or 'auto'"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"device": "gpu"}, "unknown device 'gpu'. Did you mean 'cpu'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'. Did you mean 'adamw'"),
        ({"ema": 1.0}, "--ema must be between 0 and 1, got 1.0"),
        ({"backbone_lr": 0.0}, "--backbone-lr must be above 0, got 0.0"),
        ({"backbone_lr": float("inf")}, "--backbone-lr must be a finite number or empty, got inf"),
        ({"clip_norm": "1"}, "--clip-norm must be a number or empty, got '1'"),
        ({"freeze_backbone": 1.5}, "--freeze-backbone must be a whole number, got 1.5"),
        ({"recipe": "papr"}, "unknown recipe 'papr'. Did you mean 'paper'"),
        ({"epoch": 3}, "unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"data": None}, "--data must be text"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UserError) as caught:
        resolve({"data": "digits"}, settings) if "data" not in settings else resolve(settings)
    assert message in str(caught.value)


# What is taken, and what is beyond it on either side, where there is something.
ENDS = {
    "epochs": ([1], [0]),
    "batch_size": ([2, "auto"], [1]),
    "lr": ([1e-9], [0.0, -0.1]),
    "momentum": ([0.0, 0.999], [-0.1, 1.0]),
    "weight_decay": ([0.0], [-1e-9]),
    "warmup_epochs": ([0.0], [-1e-9]),
    "backbone_lr": ([None, 1e-9], [0.0]),
    "head_lr": ([None, 1e-9], [0.0]),
    "attention_lr": ([None, 1e-9], [0.0]),
    "layer_decay": ([1e-9, 1.0], [0.0, 1.001]),
    "freeze_backbone": ([0, 1000], [-1]),
    "clip_norm": ([None, 1e-9], [0.0]),
    "accumulate": ([1, 1000], [0]),
    "ema": ([None, 1e-9, 0.99999], [0.0, 1.0]),
    "milestones": ([[], [0.5], [0.001, 0.999]], [[0.0], [1.0], [0.5, 0.4]]),
    "decay": ([1e-9, 1.0], [0.0, 1.001]),
    "label_smoothing": ([0.0, 0.999], [-0.1, 1.0]),
    "mixup": ([0.0, 1e-3, 1e3], [-0.1, 1e-4, 1001.0]),
    "cutmix": ([0.0, 1e-3, 1e3], [-0.1, 1e-4, 1001.0]),
    "seed": ([0, 2**63 - 1], [-1, 2**63]),
    "image_size": ([None, 8, 1024], [7, 1025]),
    "crop_scale": ([1e-9, 1.0], [0.0, 1.001]),
    "validation": ([0.0, 0.999], [-0.1, 1.0]),
    "max_bad": ([0], [-1]),
    "checkpoint_seconds": ([0.0], [-1e-9]),
    "checkpoint_steps": ([None, 1], [0]),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_of_every_range(name):
    within, beyond = ENDS[name]
    for value in within:
        found = getattr(resolve({"data": "digits", name: value}), name)
        assert (list(found) if isinstance(value, list) else found) == value
    for value in beyond:
        with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} must be"):
            resolve({"data": "digits", name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'. Did you mean"),
        ({"attention": "cshan"}, "unknown attention 'cshan'. Did you mean 'csham'"),
        ({"strategy": "transfr"}, "unknown strategy"),
        ({"position": "middle"}, "unknown position"),
        ({"attention": "se", "strategy": "transfer"}, "needs an attention with a channel part"),
        ({"backbone": "resnet20", "pretrained": True}, "resnet20 has no pretrained weights"),
        ({"weights_file": "nowhere.pth"}, r"no file of weights nowhere\.pth"),
        ({"weights_file": "zoo:resnet15-digits"}, r"unknown network of the zoo 'resnet15-digits'\. Did you mean"),
    ],
)
def test_names_that_do_not_exist(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(data="digits", **settings).check_names()


@pytest.mark.parametrize("content", [b"epochs: [1", b"\xff\xfe", b"- 1\n- 2\n", b""])
def test_a_file_that_holds_no_settings(tmp_path, content):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        read_settings(tmp_path / "bad.yaml")


def bomb():
    """Less than a kilobyte, which would be a billion words."""
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise("abcdefghij")]
    return "a: &a [" + ", ".join(["word"] * 10) + "]\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), r"line 2 has an alias \(\*\)"),
        ("epochs: " + "[" * 100_000, "nested too deeply"),
        ("epochs: " + "{a: " * 1000, "nested too deeply"),
        ("epochs: 3\nlr: 0.1\nepochs: 4", "a key is there twice"),
        ("epochs: " + "9" * 5000, "integer string conversion"),
        ("epochs: !!bool maybe", r"its tag \(!!\)"),
        ("epochs: !!timestamp never", r"its tag \(!!\)"),
        ("epochs: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a" * (2**22 + 1), "longer than 4 MiB"),
    ],
)
def test_a_file_that_is_no_plain_yaml(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"bad\.yaml is not a YAML file: .*{message}"):
        read_settings(tmp_path / "bad.yaml")


def test_runs_that_differ_have_different_names():
    base = {"data": "/some/where/photos", "backbone": "resnet20"}
    configs = [
        {}, {"attention": "se"}, {"attention": "csham"}, {"attention": "csham", "strategy": "transfer"},
        {"attention": "csham", "gated": True}, {"backbone": "resnet18", "pretrained": True}, {"backbone": "resnet18"},
        {"weights_file": "start.pth"}, {"weights_file": "zoo:other"}, {"backbone": "timm/resnet18"},
        {"seed": 1}, {"epochs": 2}, {"recipe": "paper"},
        {"attention": "csham", "position": "stage"}, {"attention": "csham", "position": "last"},
        {"attention": "csham", "points": ["a"]}, {"attention": "csham", "stages": [0]},
    ]  # fmt: skip
    names = [resolve({**base, **config}).default_name() for config in configs]
    assert names[0] == "photos-resnet20-none-fast-30epochs-seed0"
    assert names[2] == "photos-resnet20-csham-fast-30epochs-seed0"
    assert len(set(names)) == len(names)
    assert not any("/" in name or ":" in name for name in names)


def test_where_attention_goes_is_kept_checked_and_named():
    config = resolve(
        {
            "data": "digits",
            "attention": "csham",
            "strategy": "transfer",
            "period": 3,
            "stages": [0, -1],
            "points": ["a*"],
        }
    )
    assert (config.period, config.stages, config.points) == (3, (0, -1), ("a*",))
    assert yaml.safe_load(config.to_yaml())["stages"] == [0, -1]
    assert config.default_name() == "digits-resnet18-csham-transfer-period3-points-stages0+-1-fast-30epochs-seed0"
    config.check_names()
    for wrong, message in (
        ({"period": 3}, "period is a setting of strategy 'transfer', not of 'sequential'"),
        ({"points": ["a"], "position": "last"}, "both position='last' and points= say where"),
        ({"stages": 3}, "--stages must be a list or empty, got 3"),
        ({"stages": ["one"]}, "--stages must be a whole number, got 'one'"),
    ):
        with pytest.raises(UserError) as caught:
            resolve({"data": "digits", "attention": "csham", **wrong}).check_names()
        assert message in str(caught.value)
