"""What is installed: the wheel holds all that the package reads, and the command."""

import subprocess
import sys
import zipfile
from pathlib import Path

import jem

ROOT = Path(jem.__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package_and_the_command(tmp_path):
    source = tmp_path / "source"
    (source / "jem").parent.mkdir()
    for name in ("jem", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)  # so that the build leaves nothing beside the code
    words = ["wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel)
    names = set(held.namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jem").rglob("*.*")}
    assert {name for name in files if "__pycache__" not in name} <= names
    assert all(name.startswith(("jem/", "jem_classifier-")) for name in names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "jem = jem.cli:main" in held.read(entry).decode()
