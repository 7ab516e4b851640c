"""What may import what, what an import costs, and what the package says of itself."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import csham
from csham._lazy import EXTRAS

ROOT = Path(__file__).parent.parent

# Everything that only training and reporting need; an import of any of them must fail in the test below.
NOT_NEEDED = [
    "accelerate", "typer", "rich", "matplotlib", "sklearn", "joblib", "tensorboard", "scipy",
]  # fmt: skip

# None in sys.modules makes an import fail, and find_spec say that there is no such module.
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.long
@pytest.mark.slow
def test_the_library_half_needs_only_torch_numpy_and_timm():
    done = run(
        BLOCKED
        + "import csham, csham.data, torch\n"
        + "model = csham.create_model('resnet20', attention='csham', strategy='transfer', num_classes=3)\n"
        + "model(torch.zeros(2, 3, 32, 32))\n"
        + "assert csham.CSHAM(4)(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 8, 8)\n"
        + "csham.create_attention('se', 16); csham.retain_memory()\n"
        + "assert csham.cost(model, image_size=16, batch_sizes=[2], rounds=1).train_step_ms\n"
        + "print('done')\n"
    )
    assert done.stdout.strip() == "done", done.stderr


def test_importing_csham_and_its_name_tables_is_instant():
    done = run(
        "import csham, csham.attach.names, csham.backbones.names, csham.layers.names, csham.data, sys\n"
        "print(*[m for m in ('torch', 'timm', 'torchvision') if m in sys.modules])"
    )
    assert done.stdout.strip() == "", done.stderr


def test_doors_hold():
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_there():
    for name in csham.__all__:
        assert callable(getattr(csham, name))
    assert set(csham.__all__) <= set(dir(csham))
    with pytest.raises(AttributeError, match="no attribute 'CSHAMM'"):
        _ = csham.CSHAMM


def test_the_command_line_without_its_packages_names_the_extra():
    done = run(
        "import sys; sys.modules['typer'] = None; sys.argv = ['csham', '--help']\n"
        "import csham.cli; sys.exit(csham.cli.main())"
    )
    assert done.returncode == 2
    assert done.stderr == 'error: the command line needs typer. Install it: pip install "csham[train]".\n'


@pytest.mark.slow
def test_what_a_name_needs_is_named_with_its_extra():
    code = (
        "import sys; sys.modules.update(yaml=None); import csham\n"
        "try:\n    csham.load\nexcept ImportError as err:\n    print(err.name, err)"
    )
    assert run(code).stdout == 'yaml csham.load needs yaml. Install it: pip install "csham[train]".\n'


def test_rooms_are_attributes_of_the_package():
    rooms = "ops layers attach backbones data cost training inference study explain export share report keras errors"
    done = run(
        f"import csham, types\nfor room in {rooms!r}.split():\n"
        "    assert isinstance(getattr(csham, room), types.ModuleType), room\n"
        "csham.layers.Gate, csham.ops.choice.use_kernels, csham.training.config.TrainConfig\nprint('done')"
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.slow
def test_every_name_that_a_page_gives_is_there():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = re.findall(r"\bcsham(?:\.[A-Za-z_]\w*)+", "".join(page.read_text(encoding="utf-8") for page in pages))
    names = sorted({name for name in named if name != "csham.sha256"})  # a file
    assert {"csham.cost", "csham.cost.count_flops", "csham.explain.measure_runs"} <= set(names)
    done = run(
        f"import csham\nfor name in {names!r}:\n    try:\n        eval(name)\n"
        "    except ImportError as err:\n        assert 'nstall' in str(err), err\n"
        "print('done')"
    )
    assert done.stdout == "done\n", done.stderr


def test_a_package_that_is_called_is_to_others_the_function_of_its_name():
    done = run(
        "import csham, inspect, pickle, pydoc\n"
        "for one in (csham.attach, csham.cost, csham.explain, csham.export):\n"
        "    function = getattr(one, one.__name__.partition('.')[2])\n"
        "    assert inspect.signature(one) == inspect.signature(function)\n"
        "    assert pickle.loads(pickle.dumps(one)) is one\n"
        "    assert inspect.cleandoc(function.__doc__).splitlines()[-1] in pydoc.render_doc(one)\n"
        "from csham import cost\nimport csham.cost.flops\n"
        "assert cost is csham.cost and cost.count_flops is csham.cost.flops.count_flops\nprint('done')"
    )
    assert done.stdout == "done\n", done.stderr


def test_the_table_of_extras_is_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub"}
    imported["grad-cam"] = "pytorch_grad_cam"
    for extra, packages in EXTRAS.items():
        names = {re.split(r"[>=<\[]", line)[0] for line in declared[extra]}
        names = {imported.get(name, name) for name in names if name != "csham"}
        assert set(packages) <= names
        assert names <= {*packages, *EXTRAS["train"]}
