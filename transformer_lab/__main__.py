"""`python -m transformer_lab`: the same command as the script `transformer-lab`."""

import sys

from transformer_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
