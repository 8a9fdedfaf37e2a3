"""Speed of pgwal beside its peers; ``python -m benchmarks`` runs all of it, see README.md."""

import sys
from pathlib import Path

# The clone in which this lies holds pgwal as well, not compiled: what is installed comes first.
_CLONE = str(Path(__file__).parent.parent)
if sys.path and Path(sys.path[0] or ".").resolve() == Path(_CLONE):
    sys.path.append(sys.path.pop(0))
