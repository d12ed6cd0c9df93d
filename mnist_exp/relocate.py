"""`python -m mnist_exp.relocate`: after a project folder was moved, correct the artifact locations in its store."""

import sys

from mnist_exp import commands


def _relocate() -> int:
    parser = commands.Parser("relocate", (commands.store_option(),), description=__doc__.partition(": ")[2])
    uri = parser.parse_args().tracking_uri
    from mnist_exp import tracking  # takes a second, so not for --help

    path, count = tracking.relocate(uri)
    print(f"{path}: corrected the artifact locations of {count} runs; they are in {path.parent / 'mlruns'}")
    return 0


def main() -> int:
    """Runs the command; returns 0, or 2 without such a store."""
    return commands.run(_relocate, failed="the store was not corrected")


if __name__ == "__main__":
    sys.exit(main())
