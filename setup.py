"""The one part of the build that pyproject.toml cannot say: the WAL scanner's compiled form, which is optional."""

from __future__ import annotations

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# With a C compiler missing the install succeeds all the same, and scan.py runs as it is.
is_required = os.environ.get("PGWAL_REQUIRE_COMPILED", "") not in ("", "0")

scanner = Extension(
    "pgwal.wal.scan",
    ["pgwal/wal/scan.py"],
    depends=["pgwal/wal/scan.pxd", "pgwal/wal/crc32c.h"],
    include_dirs=["pgwal/wal"],
    extra_compile_args=["-O3"],
    optional=not is_required,
)

setup(ext_modules=cythonize([scanner], language_level=3))
