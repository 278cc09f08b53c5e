"""`python -m em_interp`, which torchrun starts as `torchrun --nproc-per-node 4 -m em_interp train CONFIG`."""

import sys

from em_interp.cli import main

if __name__ == "__main__":
    sys.exit(main())
