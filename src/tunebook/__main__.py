"""`python -m tunebook` and `torchrun -m tunebook`: the command line."""

from tunebook.cli import main

if __name__ == "__main__":
    main()
