"""`python -m qmd.vembed CONFIG --config_override k=v ...`; on several GPUs `accelerate launch -m qmd.vembed ...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from qmd.errors import QmdError
from qmd.vembed.config import PRESETS, load_train_config


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qmd.vembed", description=__doc__)
    parser.add_argument("config", nargs="?", help="YAML file with the options of the run")
    parser.add_argument("--preset", choices=PRESETS, help="options to start from")
    parser.add_argument("--config_override", "--config-override", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    given = parser.parse_args(arguments)
    try:
        config = load_train_config(given.config, preset=given.preset, overrides=given.config_override)
        from qmd.vembed.evaluation.report import report_lines
        from qmd.vembed.run import train

        report = train(config, resume=given.resume)
    except QmdError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write("".join(f"{line}\n" for line in report_lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
