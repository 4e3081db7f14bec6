"""Check built distributions: what they hold, and that they install and work where nothing else is.

Usage: python tests/helpers/check_package.py DIST [--core] [--all]

Without options, files are compared. --core installs the wheel without extras into an environment
of its own, and runs what works there; --all does so with the source distribution, too, and then
adds the extras. Each environment takes minutes.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What the source distribution must hold, of each folder of the repository and beside them.
REQUIRED = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile"),
    *("README.md", "mkdocs.yml", "pyproject.toml", "setup.cfg", ".ci/run"),
    *("benchmarks/performance/__main__.py", "docs/index.md", "docs/assets/extra.css"),
    *("experiments/results/paper_table.md", "export/run_tflite.py", "export/web/index.html"),
    *("export/serving/models.config", "notebooks/01_quickstart.ipynb", "tests/conftest.py"),
    *("tests/helpers/oracle.py", "tests/helpers/check_package.py"),
)

# What the wheel holds besides modules.
DATA = ("fd_keras/balanced.json", "fd_keras/py.typed")

CORE = """
import sys, tempfile
from pathlib import Path
import keras, numpy as np
import fd_keras
from fd_keras.presets import PRESETS

assert Path(fd_keras.__file__).is_relative_to(sys.prefix), fd_keras.__file__
images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
for name in PRESETS:
    distilled = np.asarray(fd_keras.FeatureDistillation(name)(images))
    assert distilled.shape == images.shape and np.abs(distilled - images).max() > 1, name
model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
protected = fd_keras.protect(model, fd_keras.FeatureDistillation("liu2019"))
protected.save("protected.keras")
model.save("model.keras")
np.testing.assert_allclose(keras.models.load_model("protected.keras")(images), protected(images))
version = fd_keras.export_saved_model(protected, "served")
assert (version / "saved_model.pb").is_file()
"""

EXTRAS = """
import keras, numpy as np
import fd_keras
from fd_keras._pages import environment

environment()  # the templates of the report
images = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3)).astype(np.float32)
protected = keras.models.load_model("protected.keras")
for quantize in ("none", "int8"):
    fd_keras.export_tflite(
        protected, f"{quantize}.tflite", quantize=quantize, images=images,
        representative_data=images,
    )
labels = np.asarray(keras.models.load_model("model.keras")(images)).argmax(-1)
np.savez("data.npz", x=images.astype(np.uint8), y=labels)
"""


def distributions(folder):
    """The only wheel and the only source distribution in a folder."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def files_of_sdist(path):
    with tarfile.open(path) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    return {name.partition("/")[2] for name in names}


def check_files(wheel, sdist):
    """Compare what the distributions hold with the repository."""
    held = files_of_sdist(sdist)
    missing = set(REQUIRED) - held
    assert not missing, f"{sdist.name} lacks {sorted(missing)}"
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        print("not a git checkout: what is tracked is not compared")
    else:
        tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
        assert tracked <= held, f"{sdist.name} lacks {sorted(tracked - held)}"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    modules = {name for name in held if re.match(r"fd_keras(_cli)?/.*\.py$", name)}
    templates = {name for name in held if name.startswith("fd_keras/templates/")}
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == {*modules, *templates, *DATA}, sorted(packed ^ {*modules, *templates, *DATA})
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for field in ("Author: ", "License: Apache-2.0", "Requires-Python: >=3.10"):
        assert f"\n{field}" in metadata, field
    print(f"{sdist.name}: {len(held)} files; {wheel.name}: {len(packed)} files")


def run(*command, cwd, path):
    """Run a command of an environment, away from the repository."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"PATH": f"{path}{os.pathsep}{settings['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        list(map(str, command)), cwd=cwd, env=settings, capture_output=True, text=True
    )
    assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
    return process.stdout


def check_installed(distribution, *, extras):
    """Install a distribution into an environment of its own, and run what should work there."""
    version = re.search(r"fd_keras-([\d.]+)", distribution.name)[1].rstrip(".")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        programs = home / "venv" / "bin"

        def call(*command):
            return run(*command, cwd=home, path=programs)

        python = programs / "python"
        install = (python, "-m", "pip", "install", "--quiet", "--no-compile")
        call(*install, distribution)
        for program in (["fd-keras"], [python, "-m", "fd_keras"], [python, "-m", "fd_keras_cli"]):
            assert call(*program, "--version") == f"fd-keras {version}\n"
        assert "calibrate" in call("fd-keras", "--help")
        call(python, "-c", CORE)
        export = "fd-keras export model.keras --table liu2019 --out out --format saved_model"
        assert "Next: fd-keras verify" in call(*export.split())
        print(f"{distribution.name}: installs and works without extras")
        if extras:
            call(*install, f"{distribution}[evaluate,export]")
            call(python, "-c", EXTRAS)
            attack = "--attack fgsm --epsilon 2 --cache cache --out report"
            call(*f"fd-keras evaluate model.keras data.npz {attack}".split())
            assert (home / "report" / "report.html").is_file()
            print(f"{distribution.name}: installs and works with extras")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--core", action="store_true", help="install the wheel without extras")
    parser.add_argument("--all", action="store_true", help="install both, and the extras")
    arguments = parser.parse_args()
    wheel, sdist = distributions(arguments.dist.resolve())
    check_files(wheel, sdist)
    if arguments.core or arguments.all:
        check_installed(wheel, extras=arguments.all)
    if arguments.all:
        check_installed(sdist, extras=False)


if __name__ == "__main__":
    main()
