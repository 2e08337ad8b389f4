"""Writes the API reference from the docstrings: ``python docs/build_api.py build/api``; ``make docs`` does it.

A warning is an error: a type that cannot be resolved, a name in ``__all__`` that does not exist.
"""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render

import pancrafter

NO_LIBRARY = {"__main__", "cli", "migrations"}


def modules() -> list[str]:
    """Every public module and package; commands and migrations are no library."""
    return [f"pancrafter.{one.name}" for one in pkgutil.iter_modules(pancrafter.__path__) if one.name not in NO_LIBRARY]


def main() -> None:
    """Render all modules into the folder of the first argument."""
    warnings.simplefilter("error")
    # The constructor that Python makes for a NamedTuple does not know the module whose types it names.
    warnings.filterwarnings("ignore", message=r"Error parsing type annotation ForwardRef\(.*\.__init__")
    # pdoc looks into the module's dictionary, where what is loaded when first used is not yet.
    vars(pancrafter).update({name: getattr(pancrafter, name) for name in pancrafter.__all__})
    pdoc.render.configure(docformat="google", show_source=False, search=True)
    pdoc.pdoc("pancrafter", *modules(), output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
