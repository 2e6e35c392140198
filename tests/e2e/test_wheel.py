"""The wheel holds all it needs: installed apart from the checkout, the command line answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import runs


def test_the_wheel_installs_and_answers(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    subprocess.run([*pip, *build], cwd=runs.ROOT, check=True, timeout=300)
    wheel = next(tmp_path.glob("mmray-*.whl"))
    site = tmp_path / "site"
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)
    script = (
        "import sys, pathlib, mmray, mmray.report.page as page\n"
        f"assert pathlib.Path(mmray.__file__).is_relative_to({str(site)!r}), mmray.__file__\n"
        "from mmray.cli import app\n"
        "sys.argv = ['mmray', 'schema', 'embed']\n"
        "app()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"EmbedSpec"' in done.stdout
    assert (site / "mmray" / "py.typed").exists()
    assert list((site / "mmray" / "report").glob("*.css"))
