"""`python -m pipeline` is the same as `kdpipe`."""

import sys

from pipeline.shadowing import start

if __name__ == "__main__":
    sys.exit(start())
