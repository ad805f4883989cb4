"""The command line: parse, call the Python door, format. Commands are imported when they are run."""

from qmd.serve.cli.app import main as main
from qmd.serve.cli.app import root as root
