"""`python -m transformer_lab`: the same command as the script `transformer-lab`."""

import sys

if __name__ == "__main__":
    try:
        from transformer_lab.cli import main
    except KeyboardInterrupt:  # in the first moments; from then on `main` answers
        sys.exit(130)
    sys.exit(main())
