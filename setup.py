"""What pyproject.toml cannot say of the build: the compiled form of the hot loops, which is optional.

Where there is no C compiler the install succeeds without it, and the modules named here run interpreted.  With
PGWAL_REQUIRE_COMPILED=1 in the environment a failure to compile is a failure to build.
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

is_required = os.environ.get("PGWAL_REQUIRE_COMPILED", "") not in ("", "0")

# The classes of a module are the beginnings of those of the next one.
declarations = [str(path) for path in sorted(Path("pgwal/wal").glob("*.pxd"))]
scanner = [
    Extension(
        f"pgwal.wal.{name}",
        [f"pgwal/wal/{name}.py"],
        depends=["pgwal/wal/crc32c.h", *declarations],
        include_dirs=["pgwal/wal"],
        extra_compile_args=["-O3", "-g0"],
    )
    for name in ("reference_log", "main_data", "record_parser", "page_walk", "scan")
]

extensions = cythonize(
    [
        *scanner,
        Extension(
            "pgwal.summary.chunks",
            ["pgwal/summary/chunks.py"],
            depends=["pgwal/summary/chunks.pxd"],
            extra_compile_args=["-O3", "-g0"],
        ),
        Extension(
            "pgwal.page",
            ["pgwal/page.py"],
            depends=["pgwal/page.pxd", "pgwal/page_checksum.h"],
            include_dirs=["pgwal"],
            extra_compile_args=["-O3", "-funroll-loops", "-g0"],
        ),
        Extension(
            "pgwal.disk.block_reads",
            ["pgwal/disk/block_reads.py"],
            depends=["pgwal/disk/block_reads.pxd", "pgwal/disk/block_reads.h", "pgwal/read_at.h"],
            include_dirs=["pgwal", "pgwal/disk"],
            extra_compile_args=["-O3", "-g0"],
        ),
        Extension(
            "pgwal.disk.small_files",
            ["pgwal/disk/small_files.py"],
            depends=[
                "pgwal/disk/small_files.pxd",
                "pgwal/disk/small_files.h",
                "pgwal/disk/block_reads.h",
                "pgwal/read_at.h",
            ],
            include_dirs=["pgwal", "pgwal/disk"],
            extra_compile_args=["-O3", "-g0"],
        ),
        Extension(
            "pgwal.repository.segment_part",
            ["pgwal/repository/segment_part.py"],
            depends=[
                "pgwal/repository/segment_part.pxd",
                "pgwal/read_at.h",
                "pgwal/wal/crc32c.h",
                *declarations,
            ],
            include_dirs=["pgwal", "pgwal/wal"],
            extra_compile_args=["-O3", "-g0"],
        ),
    ]
)
for extension in extensions:
    # Not an argument above: cythonize() does not pass it on.
    extension.optional = not is_required

setup(
    ext_modules=extensions,
    exclude_package_data={
        name: ["*.c", "*.h", "*.pxd"]
        for name in ("pgwal", "pgwal.disk", "pgwal.repository", "pgwal.summary", "pgwal.wal")
    },
)
