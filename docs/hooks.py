"""For MkDocs: notebooks become pages like the others, and docstrings lose what only Sphinx reads.

Forty lines instead of a plugin that brings nbconvert, JupyterLab's style sheets and a page unlike the others.
As Markdown, a notebook has the site's search, links that are checked, and its light and dark colours. Links
name the ``.ipynb``, so that they also lead somewhere on GitHub; on the site they lead to the page.
"""

import base64
import json
import re
from typing import Any

from mkdocs.structure.files import File

_PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page, and its pictures, for each notebook; the notebook itself stays, to be downloaded."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            stem = file.src_uri.removesuffix(".ipynb")
            page, pictures = to_markdown(json.loads(file.content_string), stem.rsplit("/", 1)[-1])
            files.append(File.generated(config, f"{stem}.md", content=page))
            folder = stem.rpartition("/")[0]
            for name, content in pictures.items():
                files.append(File.generated(config, f"{folder}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r"\]\(([^)\s]+)\.ipynb(#[^)]*)?\)", r"](\1.md\2)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Names in docstrings without the roles by which Sphinx would know them, and those with ~ in short."""
    return re.sub(r":(?:mod|class|func|meth|attr|data):(<code>)(?:~[\w.]*\.)?(\w[^<]*</code>)", r"\1\2", html)


def to_markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name, each of which begins with ``name``."""
    parts, pictures = [], {}
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            text, picture = _shown(output)
            if picture:
                file = f"{name}-{number}.{picture[0]}"
                pictures[file] = picture[1]
                parts.append(f"![What the cell above draws]({file})")
            elif text.strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    download = f'<p><a href="../{name}.ipynb" download>Download this notebook</a></p>'
    return "\n\n".join([parts[0], download, *parts[1:]]) + "\n", pictures


def _shown(output: dict[str, Any]) -> tuple[str, tuple[str, bytes] | None]:
    """The text of an output, or its picture: the ending of a file, and what is in it."""
    if output["output_type"] == "stream":
        return "".join(output["text"]), None
    data = output["data"]
    for kind, ending in _PICTURES.items():
        if kind in data:
            return "", (ending, base64.b64decode(data[kind]))
    return "".join(data.get("text/plain", "")), None
