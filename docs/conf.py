"""The documentation site: Sphinx with MyST pages; `make docs` builds it with warnings as errors."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from planner._version import __version__  # noqa: E402

project = "planner"
copyright = "2026, the planner maintainers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"show-inheritance": False}
python_use_unqualified_type_names = True

copybutton_prompt_text = "$ "
html_theme = "furo"
html_title = f"planner {__version__}"

ELSEWHERE = {
    "architecture": "ARCHITECTURE.md",
    "results": "bench/RESULTS.md",
    "experiments": "bench/EXPERIMENTS.md",
    "emoji-flux": "models/weights/grat_planner_weights/emoji-flux/README.md",
    "emoji-hunyuan": "models/weights/grat_planner_weights/emoji-hunyuan/README.md",
    "emoji-scorer": "models/weights/grat_planner_weights/emoji-scorer/README.md",
}
"""Pages whose text lies outside of this folder, where a reader of the repository looks for it."""


def relink(text: str, folder: Path) -> str:
    """Return a page's text with its links to files of the repository leading to pages of the site."""
    pages = {ROOT / path: f"{page}.md" for page, path in ELSEWHERE.items()}
    pages |= {path: path.name for path in (ROOT / "docs").glob("*.md")}

    def replace(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        page = pages.get((folder / target).resolve())
        if page is None:
            return match[0] if "://" in target or not target else f"]({_relative(folder / target)})"
        return f"]({page}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", replace, text)


def _relative(path: Path) -> str:
    return f"../{path.resolve().relative_to(ROOT).as_posix()}"


def inline(_app: object, page: str, source: list[str]) -> None:
    """Put in the text of a page that lies elsewhere, and mend its links."""
    path = ROOT / ELSEWHERE.get(page, f"docs/{page}.md")
    source[0] = relink(path.read_text(encoding="utf-8"), path.parent)


def setup(app: object) -> None:
    """Connect what happens when a page is read."""
    app.connect("source-read", inline)
