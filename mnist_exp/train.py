"""`python -m mnist_exp.train`: translate arguments, call one function, print. README.md says what the options mean."""

import gc
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_exp import RequestError, RunError, terminal
from mnist_exp.config import CONF_DIR, Config, check, explain
from mnist_exp.sweep import EXIT_FAILED, EXIT_SENSELESS, abandon_sweep, is_auto, load, settle, sweep_tags

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def job(composed: DictConfig) -> float:
    """Train one run; return its validation accuracy, NaN where it failed and its siblings go on."""
    code = EXIT_FAILED
    try:
        return _train(check(composed))
    except RequestError as error:
        terminal.complain(str(error))
        code = EXIT_SENSELESS
    except Exception as error:  # noqa: BLE001 - whatever it is, the siblings of this run must go on
        if not isinstance(error, RunError | OSError):  # a diverged loss, a full disk: no bug
            traceback.print_exc()
        text = str(error).strip().partition("\n")[0]
        terminal.complain(f"run {composed.name}-s{composed.seed} failed: {type(error).__name__}: {text}")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return float("nan")
    sys.exit(code)


def _train(config: Config) -> float:
    """Load the data, open the store, run. What fails early is tried first: TensorFlow takes seconds to import."""
    if is_auto(config) and (option := settle(config)) != "mnist":
        terminal.warn_no_mnist(option)
    dataset = load(config)
    from mnist_exp import tracking

    store = tracking.open_store(config.tracking.uri, config.tracking.experiment)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with terminal.quiet_stderr("importing TensorFlow"):
        from mnist_exp.run import run_experiment
    gc.freeze()  # what was imported stays: not looking through it again saves each run a third of a second
    settings = HydraConfig.get()
    output = Path(settings.runtime.output_dir)
    tags = sweep_tags(config.sweep.id, settings.job.num) if config.sweep.id else {}
    overrides = [text for text in settings.overrides.task if not text.startswith("sweep.")]
    return run_experiment(config, dataset, store, output, tags, overrides).metrics["final_val_accuracy"]


def _terminate(*_: object) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


def main() -> None:
    """The command; exits with 0, 1 (a run failed), 2 (the request makes no sense), 130 (Ctrl-C) or 143 (SIGTERM)."""
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # have Hydra raise its errors: its reports take several lines
    try:
        job()
    except KeyboardInterrupt:
        abandon_sweep("KILLED")
        terminal.complain("interrupted; a run that was under way is recorded as KILLED, what had finished is kept")
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit:
        abandon_sweep("KILLED")
        raise
    except Exception as error:  # noqa: BLE001 - `job` lets none pass: Hydra could not make sense of the request
        given = "" if isinstance(error, HydraException) else f"{' '.join(sys.argv[1:])!r} cannot be started: "
        terminal.complain(given + explain(error))
        sys.exit(EXIT_FAILED if abandon_sweep("FAILED") else EXIT_SENSELESS)


if __name__ == "__main__":
    main()
