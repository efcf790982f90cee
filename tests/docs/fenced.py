"""The README and the pages, and what stands between their fences."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
USED = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]  # by those who have the wheel
PAGES = [*USED, ROOT / "CONTRIBUTING.md"]


def fences(page: Path, language: str) -> list[str]:
    text = page.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path, language: str = "bash") -> list[list[str]]:
    """The words of each line of the page that somebody pastes into a shell."""
    lines = "".join(fences(page, language)).replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in line.split("&&"))
    return [words for part in parts if (words := shlex.split(part, comments=True))]
