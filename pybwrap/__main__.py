"""`python -m pybwrap`."""

from pybwrap.cli import main

if __name__ == "__main__":
    main()
