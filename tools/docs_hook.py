"""What MkDocs gets beside the files of ``docs/``: reference pages, the tutorial notebook, links out of the folder."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from docs_reference import pages

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "examples/tutorial.ipynb"
NOTEBOOK_PAGE = "tutorials/notebook.md"

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>(?!\w+:)[^)#\s]+)(?P<place>#[^)\s]+)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that no file of ``docs/`` holds."""
    from mkdocs.structure.files import File

    for path, text in {**pages(), NOTEBOOK_PAGE: notebook_page(ROOT / NOTEBOOK)}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside ``docs/`` name the file, as the site does not hold it; the notebook has a page here."""
    source = page.file.src_uri

    def inside(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), link["path"]))
        if target == NOTEBOOK:
            return f"[{link['text']}]({posixpath.relpath(NOTEBOOK_PAGE, posixpath.dirname(source) or '.')})"
        if target.startswith("docs/"):
            return link[0]
        return f"`{target}`" if link["text"].strip("`") in target else f"{link['text']} (`{target}`)"

    return _LINK.sub(inside, markdown)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text and its code. Outputs are not stored in it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts) + f"\n\nThe notebook is `{NOTEBOOK}`.\n"
