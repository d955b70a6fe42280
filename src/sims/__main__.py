"""The sims command, also as python -m sims.

While its modules are read, nothing is garbage: collecting it would take a sixth of the time until a command begins.
"""

import gc
import sys

gc.disable()
from sims.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
