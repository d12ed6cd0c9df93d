"""`python -m mnist_exp.train`: translate arguments, call one function, print. README.md says what the options mean."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mnist_exp import RequestError, terminal
from mnist_exp.config import CONF_DIR, Config, check, explain
from mnist_exp.data import Dataset, resolve_auto
from mnist_exp.sweep import EXIT_FAILED, EXIT_SENSELESS, close_sweep, is_auto

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def job(composed: DictConfig) -> float:
    """Train one run; return its validation accuracy, NaN where it failed and its siblings go on."""
    code = EXIT_FAILED
    try:
        return _train(check(composed))
    except (KeyboardInterrupt, SystemExit):
        if composed.sweep.id:
            _close_sweep(composed)
        raise
    except RequestError as error:
        terminal.complain(str(error))
        code = EXIT_SENSELESS
    except Exception as error:  # noqa: BLE001 - whatever it is, the siblings of this run must go on
        if not isinstance(error, ArithmeticError):  # a diverged loss needs no traceback
            traceback.print_exc()
        name = f"{composed.name}-s{composed.seed}"
        terminal.complain(f"run {name} failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return float("nan")
    sys.exit(code)


def _train(config: Config) -> float:
    """Load the data, open the store, run. What fails early is tried first: TensorFlow takes seconds to import."""
    dataset = _load(config)
    from mnist_exp import tracking

    store = tracking.open_store(config.tracking.uri, config.tracking.experiment)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with terminal.quiet_stderr():
        from mnist_exp.run import run_experiment
    settings = HydraConfig.get()
    output = Path(settings.runtime.output_dir)
    tags = {"sweep": config.sweep.id} if config.sweep.id else {}
    overrides = [text for text in settings.overrides.task if not text.startswith("sweep.")]
    return run_experiment(config, dataset, store, output, tags, overrides).metrics["final_val_accuracy"]


def _load(config: Config) -> Dataset:
    """Load the data, after data=auto has been settled in the config as a concrete source."""
    if is_auto(config):
        option = config.sweep.data or resolve_auto(config.data["path"])
        if option != "mnist":
            terminal.warn_no_mnist(option)
        defaults = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / f"{option}.yaml"))
        given = {key: config.data[key] for key in defaults if key != "_target_" and config.data.get(key) is not None}
        config.data = {**defaults, **given}
    arguments: dict[str, Any] = {key: value for key, value in config.data.items() if key != "_target_"}
    return get_object(config.data["_target_"])(**arguments)


def _close_sweep(composed: DictConfig) -> None:
    from mnist_exp import tracking

    close_sweep(tracking.open_store(composed.tracking.uri, composed.tracking.experiment), composed.sweep.id, "KILLED")


def _terminate(*_: object) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


def main() -> None:
    """The command; exits with 0, 1 (a run failed), 2 (the request makes no sense), 130 (Ctrl-C) or 143 (SIGTERM)."""
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # have Hydra raise its errors: its reports take several lines
    try:
        job()
    except HydraException as error:
        terminal.complain(explain(error))
        sys.exit(EXIT_SENSELESS)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
