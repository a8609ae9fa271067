"""Follow docs/write-a-plug-in.md to the letter: a package, installed, whose target the command line knows."""

from pages import ROOT, commands, files, install, run, write

PAGE = "write-a-plug-in.md"


def test_a_package_adds_a_target(tmp_path):
    found = files(PAGE)
    for name in ("planner_lab/__init__.py", "planner_lab/target.py"):
        write(tmp_path, name, found[name])
    (command,) = commands(PAGE)
    assert "there is no target 'lab64'" in run(tmp_path, command, tmp_path, ROOT, status=2)
    install(found["pyproject.toml"], tmp_path)
    assert "on lab64" in run(tmp_path, command, tmp_path, ROOT)
