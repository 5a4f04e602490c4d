"""Importing the benchmarks, which are no part of the package."""

import importlib
import sys
from types import ModuleType

from conftest import ROOT


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, which imports its neighbours by their names."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
