"""`python -m mnist_exp.relocate`: after a project folder was moved, have its store say where its artifacts are now."""

import argparse
import sys

from mnist_exp import console
from mnist_exp.errors import EXIT_SENSELESS, RequestError


def main() -> None:
    """The command; exits with 0, or 2 when there is no such store."""
    parser = argparse.ArgumentParser("python -m mnist_exp.relocate", description=__doc__.partition(": ")[2])
    parser.add_argument("--tracking-uri", help="the store; default: MLFLOW_TRACKING_URI, else ./mlflow.db")
    uri = parser.parse_args().tracking_uri
    from mnist_exp import tracking  # a second, not for --help

    try:
        path, count = tracking.relocate(uri)
    except RequestError as error:
        console.complain(str(error))
        sys.exit(EXIT_SENSELESS)
    print(f"{path}: {count} runs said that their artifacts are elsewhere; they are in {path.parent / 'mlruns'}")


if __name__ == "__main__":
    main()
