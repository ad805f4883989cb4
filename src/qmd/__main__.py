"""`python -m qmd` is `qmd`."""

from qmd.serve.cli import main

if __name__ == "__main__":
    main()
