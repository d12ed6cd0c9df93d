"""`python -m mnist_exp`: list the commands."""

import sys

from mnist_exp import commands


def _list() -> int:
    parser = commands.Parser(None, description="Experiment tracking for image classification.")
    parser.parse_args()
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(_list))
