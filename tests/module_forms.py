"""The two forms of a module that can be compiled, for tests that hold for both."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.mark import ParameterSet

ROOT = Path(__file__).parent.parent


def both_forms(module: ModuleType) -> list[ParameterSet]:
    """Return parameters for a test: the module as it was imported, and its source if that is another form."""
    if not module.COMPILED:
        return [pytest.param(module, id="interpreted")]
    return [pytest.param(module, id="compiled"), pytest.param(interpreted(module.__name__), id="interpreted")]


def interpreted(name: str) -> ModuleType:
    """Load a module's source beside its compiled form, which an import would find first."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"interpreted_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.COMPILED
    return module
