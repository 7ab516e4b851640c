"""What may import what, what an import costs, and what the package says of itself."""

import subprocess
import sys
from pathlib import Path

import pytest

import csham

# Everything that only training and reporting need; an import of any of them must fail in the test below.
NOT_NEEDED = [
    "accelerate", "typer", "rich", "pandas", "matplotlib", "sklearn", "joblib", "tensorboard", "scipy",
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
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=Path(__file__).parent.parent,
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
