"""The wheel, built from this checkout, installed in a clean folder, and run from it without the checkout.

Nothing is downloaded: it is built with the hatchling of this environment, and installed without the
packages that it depends on, which this environment has.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
RULES = sorted(path.name for path in (CHECKOUT / "rules").glob("*.rule"))
MODULES = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "optgen").rglob("*.py"))

STEP = '''
import sys
from pathlib import Path

import torch

import optgen
from optgen import library

installed = Path(sys.argv[1])
assert Path(optgen.__file__).is_relative_to(installed), optgen.__file__
assert library.folder() == installed / "optgen" / "rules", library.folder()

own = """
hyper(lr=0.5)
p = p - lr*g
"""
for make, expected in [
    (optgen.AdamW, torch.optim.AdamW),
    (optgen.optimizer("adamw"), torch.optim.AdamW),
    (lambda params, lr: optgen.optimizer(own)(params), lambda params, lr: torch.optim.SGD(params, lr=0.5)),
]:
    stepped = []
    for cls in (make, expected):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(40, 5))
        p.grad = torch.randn_like(p)
        cls([p], lr=1e-2).step()
        stepped.append(p.detach())
    torch.testing.assert_close(*stepped)
print("stepped")
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    run(command, folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder into which the wheel was installed, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    command = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    run(command, target)
    return target


def run(module_and_arguments, cwd, **environment):
    """What `python -m …` prints; its complaints are shown where it fails."""
    command = [sys.executable, "-m", *module_and_arguments]
    return complete(command, cwd, environment)


def complete(command, cwd, environment):
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def elsewhere(installed, tmp_path):
    """An empty working folder, and the environment in which Python finds the installed wheel first."""
    cwd = tmp_path / "empty"
    cwd.mkdir()
    return cwd, {"PYTHONPATH": str(installed), "OPTGEN_CACHE_DIR": str(tmp_path / "cache")}


def test_holds_the_package_and_its_rules_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = [n for n in names if ".dist-info/" not in n]
    assert sorted(n for n in inside if n.endswith(".py")) == MODULES
    assert sorted(Path(n).name for n in inside if n.startswith("optgen/rules/")) == [
        "ORACLES.md",
        *RULES,
    ]
    assert "optgen/py.typed" in inside
    others = {n for n in inside if not n.endswith((".py", ".rule", ".md"))}
    assert others == {"optgen/py.typed", "optgen/__init__.pyi"}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_steps_outside_the_checkout(installed, elsewhere):
    cwd, environment = elsewhere
    assert complete([sys.executable, "-c", STEP, str(installed)], cwd, environment) == "stepped\n"
    assert list(cwd.iterdir()) == []


def test_command_line_outside_the_checkout(installed, elsewhere):
    cwd, environment = elsewhere
    listed = run(["optgen", "list"], cwd, **environment, COLUMNS="200", NO_COLOR="1")
    assert "adamw" in listed
    script = installed / "bin" / ("optgen.exe" if os.name == "nt" else "optgen")
    assert complete([str(script), "list"], cwd, {**environment, "COLUMNS": "200", "NO_COLOR": "1"}) == listed
