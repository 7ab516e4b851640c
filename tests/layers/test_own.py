import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import csham
from csham.attach import STRATEGIES
from csham.backbones.cifar import CifarResNet
from csham.backbones.own import pack_code, unpack_code, use_code
from csham.backbones.spec import NetworkSpec
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.layers.own import code_of, find_attention

pytestmark = pytest.mark.usefixtures("own_names")

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """Gate of channel means."""

    def __init__(self, channels, reduction=4):
        super().__init__()
        self.scale = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)
        )

    def weights(self, x):
        return self.scale(x.mean((2, 3))).sigmoid()

    def forward(self, x):
        return x * self.weights(x)[:, :, None, None]


class Rows(nn.Module):
    def __init__(self, channels, *, device=None, dtype=None):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def weights(self, x):
        return (x * self.slope[:, None, None]).mean(1, keepdim=True).sigmoid()

    def forward(self, x):
        return x * self.weights(x)


class Both(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channel, self.spatial = Gate(channels), Rows(channels)

    def forward(self, x):
        return self.spatial(self.channel(x))


class Unlearnt(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x * x.mean(1, keepdim=True).sigmoid()


def make_gate(channels):
    return Gate(channels, 2)


def make_active(channels, act):
    return nn.Sequential(Gate(channels), nn.ReLU())


def network():
    return CifarResNet(14, num_classes=3)


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        (Gate, "Gate"),
        (make_gate, "make_gate"),
        (functools.partial(Gate, reduction=2), "Gate"),
        (lambda channels: Gate(channels, 8), "lambda"),
        (Both, "Both"),
        (Unlearnt, "Unlearnt"),
    ],
)
def test_a_class_or_function_is_attached_like_a_named_attention(attention, name):
    torch.manual_seed(1)
    plain = network().eval()
    torch.manual_seed(1)
    model = network().eval()
    listed = csham.attach(model, attention, dry_run=True)
    torch.testing.assert_close(model(X), plain(X))
    points = csham.attach(model, attention, gated=True)
    assert [(p.name, p.params + 1, p.attention) for p in listed] == [(p.name, p.params, name) for p in points]
    torch.testing.assert_close(model(X), plain(X))
    csham.detach(model)
    csham.attach(model, attention)
    assert not torch.allclose(model(X), plain(X))
    model.train()(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_settings_reach_the_class_and_unknown_ones_are_refused():
    assert csham.attach(network(), Gate, reduction=2)[0].params > csham.attach(network(), Gate, reduction=8)[0].params
    with pytest.raises(UserError, match=r"Gate does not take these settings: ratio. It takes: reduction."):
        csham.attach(network(), Gate, ratio=2)


class Sized(Both):
    def __init__(self, channels, size):
        super().__init__(channels)
        self.bias = nn.Parameter(torch.zeros(size))


def test_settings_without_a_default_are_those_of_the_call():
    assert csham.attach(network(), Sized, strategy="reversed", size=7)[0].params > 7
    assert csham.create_attention(Sized, 16, size=7).bias.shape == (7,)
    assert csham.create_model("resnet20", attention=Sized, num_classes=3, image_size=32, size=7)
    with pytest.raises(UserError, match=r"Sized\(16\) failed: TypeError: .*'size'.* lambda channels: MyGate\("):
        csham.attach(network(), Sized)
    with pytest.raises(UserError, match=r"Sized has no bias that its weights start from, or a method open_gates"):
        csham.attach(network(), Sized, open_gates=True, size=7)
    with pytest.raises(UserError, match=r"Sized has no bias that its weights start from, or a method open_gates"):
        csham.create_attention(Sized, 16, open_gates=True, size=7)


def test_a_function_is_called_for_the_channels_of_the_network():
    groups = {16: 2, 32: 4, 64: 8}
    points = csham.attach(network(), lambda channels: nn.GroupNorm(groups[channels], channels))
    assert {p.channels for p in points} == groups.keys()
    del groups[32]
    with pytest.raises(UserError, match=r"lambda\(32\) failed: KeyError: 32\. An attention is"):
        csham.attach(network(), lambda channels: nn.GroupNorm(groups[channels], channels))


def test_listing_points_and_looking_at_a_class_draw_no_numbers():
    model = network()
    torch.manual_seed(3)
    csham.attach(model, Gate, dry_run=True)
    csham.register_attention("own", Both)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, torch.rand(3))


@pytest.mark.parametrize("kind", [Gate, Rows])
def test_type_and_place_are_the_networks(kind):
    model = network().double()
    csham.attach(model, kind)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.device.type for p in csham.create_attention(kind, 8, device="meta").parameters()} == {"meta"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_class_of_two_parts_works_under_every_strategy(strategy):
    model = network().eval()
    csham.attach(model, Both, strategy=strategy)
    with csham.attention_maps(model) as maps:
        assert model(X).isfinite().all()
    assert set().union(*maps.values()) <= {"channel", "spatial"}
    assert maps


class Convolved(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Conv2d(channels, channels, 1)

    def weights(self, x):
        return self.scale(x.mean((2, 3), keepdim=True)).sigmoid()

    def forward(self, x):
        return x * self.weights(x)


def test_maps_are_what_the_class_tells():
    model = network()
    csham.attach(model, Convolved)
    with csham.attention_maps(model) as maps:
        model(X)
    assert {name: tuple(each["channel"].shape) for name, each in maps.items()}["layer1.0.bn2"] == (2, 16)
    csham.attach(csham.detach(model), Unlearnt)
    with csham.attention_maps(model) as maps:
        model(X)
    assert maps == {}


@pytest.mark.parametrize("strategy", [name for name, entry in STRATEGIES.items() if entry.needs_parts])
def test_one_without_parts_is_told_which_strategies_would_do(strategy):
    with pytest.raises(UserError, match=r"an attention with a channel part and a spatial part .* 'Gate' has none"):
        csham.attach(network(), Gate, strategy=strategy)


class Half(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x[:, :, ::2, ::2]


class Weights(Gate):
    def forward(self, x):
        return self.weights(x)[:, :, None, None]  # which a network adds to its shortcut without a word


class Raises(Unlearnt):
    def forward(self, x):
        raise KeyError("scale")


class Lazy(Unlearnt):
    def __init__(self, channels):
        super().__init__(channels)
        self.convs = nn.Sequential(nn.LazyConv2d(channels, 1))


ONE = nn.Identity()


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (Half, r"Half at layer1\.0\.bn2 made a map of \(1, 16, 32, 32\) of one of \(1, 16, 64, 64\)"),
        (Weights, r"made a map of \(1, 16, 1, 1\)"),
        (Raises, "no longer runs on images of 64x64: KeyError: 'scale'"),
        (lambda channels: 3, r"lambda\(16\) returned a int, and an attention is an nn.Module"),
        (lambda: Gate(64), r"lambda\(16\) failed: TypeError: .* An attention is a class or function of a number of"),
        (Gate(64), "Gate is a module, and one for every point would share its weights. Give its class"),
        (lambda channels: ONE, "returned the same module for two points"),
        (
            Lazy,
            r"Lazy\(16\) has a layer whose size its first pass decides: convs\.0\. Build it from the channels: nn\.",
        ),
        (7, "an attention is a name, or a class or function of channels, got 7"),
        ("gate_module:Gate", r"To run it, add --code gate_module:Gate; in Python, call csham.register_attention"),
        ("csham:Gate", "unknown attention 'csham:Gate'"),
    ],
)
def test_what_is_no_attention_is_refused_and_the_network_stays(attention, message):
    model = network().eval()
    before = model(X)
    with pytest.raises(UserError, match=message):
        csham.attach(model, attention)
    torch.testing.assert_close(model(X), before)
    assert not any(type(m).__name__ == "Attached" for m in model.modules())


def test_a_registered_name_is_known_everywhere():
    csham.register_attention("own", Both, summary="both gates", source="Doe, 2025")
    entry = ATTENTIONS["own"]
    assert (entry.source, entry.two_part, entry.maps) == ("Doe, 2025", True, ("channel", "spatial"))
    assert isinstance(csham.create_attention("own", 8), Both)
    assert csham.attach(network(), "own", strategy="transfer")[0].attention == "own"
    named = csham.create_model("resnet20", attention="own", num_classes=3, image_size=32)
    given = csham.create_model("resnet20", attention=Both, num_classes=3, image_size=32)
    assert named.state_dict().keys() == given.state_dict().keys() > network().state_dict().keys()
    csham.register_attention("own", Gate)
    assert not ATTENTIONS["own"].two_part


@pytest.mark.parametrize("name", ["se", "none", "all", "", "a b", "a,b", "a:b:c", "../a", 3])
def test_names_that_cannot_be(name):
    with pytest.raises(UserError, match="register_attention"):
        csham.register_attention(name, Gate)


def test_the_code_is_known_by_its_file():
    csham.register_attention("own", Gate)
    code = code_of("own")
    assert (code.module, code.name, code.file) == (__name__, "Gate", __file__)
    assert code.sha256 == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    csham.register_attention("own", functools.partial(Gate, reduction=2))
    by_two = code_of("own")
    csham.register_attention("own", functools.partial(Gate, reduction=4))
    assert len({code.sha256, by_two.sha256, code_of("own").sha256}) == 3
    assert by_two.name is None
    hashes = []
    for act in [lambda x: x, lambda x: x]:  # functions, whose addresses are others in every process
        csham.register_attention("own", functools.partial(make_active, act=act))
        hashes.append(code_of("own").sha256)
    assert len(set(hashes)) == 1
    assert code_of("se") is None


MODULE = """
from torch import nn

class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.slope = nn.Parameter({value} * __import__("torch").ones(channels))

    def forward(self, x):
        return x * self.slope[:, None, None]

class Outer:
    Inner = Gate

make = lambda channels: Gate(channels)
"""


def test_a_module_beside_is_used_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_one.py").write_text(MODULE.format(value=1))
    Path("own_pack").mkdir()
    Path("own_pack/gates.py").write_text(MODULE.format(value=2))
    for reference in ("own_one:Gate", "own_pack.gates:Outer.Inner", "own_one:make"):
        use_code(reference)
        assert csham.attach(network(), reference)[0].params == 16
        assert code_of(reference).reference == reference
    assert Path(code_of("own_pack.gates:Outer.Inner").file) == tmp_path / "own_pack/gates.py"
    with pytest.raises(UserError, match=r"own_one \(.*own_one.py\) has no Gat. Did you mean 'Gate'"):
        use_code("own_one:Gat")


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (None, "own_none:Gate", "there is no module own_none: .* has no own_none.py, and none is installed"),
        ("import own_missing", "own_a:Gate", "own_a could not be imported: ModuleNotFoundError: No module named"),
        ("1 / 0", "own_b:Gate", "own_b could not be imported: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "own_c:Gate", "own_c could not be imported: SystemExit: 3"),
        ("Gate = 3", "own_d:Gate", "an attention is a name, or a class or function of channels, got 3"),
        ("", "own_e.py:Gate", "names no code. Write my_module:MyGate.* Leave .py out: own_e:Gate."),
        (None, "own-f:Gate", "names no code"),
        (None, "../own_g:Gate", "names no code"),
    ],
)
def test_code_that_cannot_be_used(text, reference, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(reference.partition(":")[0].removesuffix(".py") + ".py").write_text(text)
    with pytest.raises(UserError, match=message):
        use_code(reference)


def test_another_file_of_the_same_name_is_not_taken_for_the_first(tmp_path, monkeypatch):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "own_twice.py").write_text(MODULE.format(value=number))
    monkeypatch.chdir(tmp_path / "1")
    use_code("own_twice:Gate")
    monkeypatch.chdir(tmp_path / "2")
    with pytest.raises(UserError, match=r"this process has imported .*1/own_twice.py under that name"):
        use_code("own_twice:Gate")


SCRIPT = """
import json, sys
import csham
from csham.backbones.own import unpack_code

unpack_code(json.loads(sys.argv[1]))
for name in sys.argv[2:]:
    print(name, csham.create_attention(name, 4).slope.sum().item())
"""


def test_another_process_gets_what_the_user_named_in_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_three.py").write_text(MODULE.format(value=3))
    registering = "\nimport csham, functools\ncsham.register_attention('five', functools.partial(Gate))\n"
    Path("own_five.py").write_text(MODULE.format(value=5) + registering)
    use_code("own_three:Gate")
    use_code("own_five")
    import own_three

    csham.register_attention("three", own_three.Gate)
    names = ["own_three:Gate", "three", "five"]
    packed = json.dumps(pack_code(NetworkSpec(attention=name) for name in [*names, "se", "none"]))
    monkeypatch.chdir("/")
    command = [sys.executable, "-c", SCRIPT, packed, *names]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["own_three:Gate", "12.0", "three", "12.0", "five", "20.0"]


def test_what_other_processes_cannot_import_is_said_at_once(tmp_path):
    entry = find_attention(Gate)
    ATTENTIONS["prompt"] = entry.__class__(**{**vars(entry), "name": "prompt", "code": replace_module(entry.code)})
    with pytest.raises(UserError, match="of a script or a prompt, which other processes cannot import"):
        pack_code([NetworkSpec(attention="prompt")])
    (tmp_path / "own_shy.py").write_text("")
    with pytest.raises(UserError, match="own_shy was imported, and did not register the attention 'shy'"):
        unpack_code([{"kind": "attention", "name": "shy", "reference": "own_shy", "folder": str(tmp_path)}])


def replace_module(code):
    return type(code)("__main__", None, code.file, code.sha256)
