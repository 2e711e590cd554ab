"""Run the notebooks of the documentation, and keep what they give.

    python docs/run_notebooks.py [NOTEBOOK ...]

Notebooks are committed with their outputs, so that the site and GitHub show their pictures without running
anything, and the site is built in seconds. This command is how outputs get there. It runs every cell in a
fresh kernel, in an empty folder, and writes the notebook back without what differs from run to run (times,
numbers of executions, the kernel's version). Needs spp_jax[demo,notebooks].
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

__all__ = ["NOTEBOOKS", "executed", "main", "tidy"]

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))


def executed(path: Path, folder: str | os.PathLike[str], seconds: int = 900) -> nbformat.NotebookNode:
    """A notebook with the outputs of running it.

    Args:
        path: of the notebook, which is left as it is.
        folder: to run it in.
        seconds: that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; its traceback is in the message.
    """
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=seconds, resources=place).execute()
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run, and without standard error; changed in place.

    Standard error has what a slow or a busy machine makes XLA and others say.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = None
                if "metadata" in output:
                    output.metadata = nbformat.NotebookNode()
    return notebook


def main(arguments: list[str]) -> int:
    """Run the notebooks named, or all."""
    for path in map(Path, arguments or NOTEBOOKS):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, folder), path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
