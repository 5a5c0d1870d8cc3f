"""`python -m pybwrap`."""

import sys

# `-m` looks for modules in the working directory first, and that is often what is not to be trusted. (What the
# interpreter itself imports on the way here is out of reach: `python -P -m pybwrap` keeps that safe too.)
if not sys.flags.safe_path:
    del sys.path[0]

from pybwrap.cli import main

if __name__ == "__main__":
    main()
