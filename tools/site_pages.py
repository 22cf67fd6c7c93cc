"""Collects the pages of the documentation's site, in the folders that they have in the repository.

    python -m tools.site_pages build/site/pages

So every link between them is the same on the site and in the repository, and the README is the
site's first page. A link to a file that is not collected is an error; Zensical looks at links to
pages and to their headings. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/**/*",
    "benchmarks/README.md",
    "benchmarks/results/*.json",
    "deploy/**/*",
    "integration-tests/README.md",
)


def collect(target: Path) -> list[Path]:
    """Copies the pages and what they show into `target`, which is emptied; returns their paths."""
    shutil.rmtree(target, ignore_errors=True)
    copied = []
    for pattern in PAGES:
        for source in sorted(ROOT.glob(pattern)):
            if source.is_file():
                copy = target / source.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
                copied.append(copy)
    return copied


def dangling(pages: list[Path]) -> list[str]:
    """Links between the pages that lead to no file, a line each."""
    found = []
    for page in pages:
        if page.suffix == ".md":
            # Neither to another site nor within the page.
            links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
            missing = [link for link in links if not (page.parent / link).is_file()]
            found += [f"{page}: {link} is not there" for link in missing]
    return found


def main() -> int:
    """Runs the program and returns its exit status."""
    parser = argparse.ArgumentParser(description="Collects the pages of the site.")
    parser.add_argument("target", type=Path)
    pages = collect(parser.parse_args().target)
    lines = dangling(pages)
    print(f"{len(pages)} files", *lines, sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
