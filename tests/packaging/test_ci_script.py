""".ci/run takes its test command from README.md; the command itself is tested by running .ci/run."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]' && .venv/bin/python -m pytest"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def show(folder):
    return subprocess.run([folder / ".ci" / "run", "--show"], capture_output=True, text=True, cwd="/")


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        (f"# Title\n\n```\n{COMMAND}\n```\n", True),
        (f"```bash\npython3 -m venv .venv && run\n{COMMAND}\n```\n{COMMAND}\n", True),
        (f"# Title\n{COMMAND}\n", False),
        (f"```\n{COMMAND}\n{COMMAND}\n```\n", False),
        (f"```\n{COMMAND} -x\n```\n", False),
        ("", False),
    ],
)
def test_the_command_is_found_in_a_fenced_block(tmp_path, readme, found):
    (tmp_path / ".ci").mkdir()
    shutil.copy(CHECKOUT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "README.md").write_text(readme)
    shown = show(tmp_path)
    assert (shown.returncode == 0) is found
    assert shown.stdout == (COMMAND + "\n" if found else "")


def test_the_readme_holds_the_command():
    if "```" not in (CHECKOUT / "README.md").read_text(encoding="utf-8"):
        pytest.skip("README.md is not written yet")
    assert show(CHECKOUT).stdout == COMMAND + "\n"
