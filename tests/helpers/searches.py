"""A search whose trainings are replaced by a function of their overrides."""

import math

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from mnist_exp.config import CONF_DIR
from mnist_exp.sweep import optuna_search, search

RATE = "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))"


class Launcher:
    """Stands in for training: `scores` gives the objective of a job from its overrides, as a dict."""

    def __init__(self, scores):
        self.scores, self.batches = scores, []

    @property
    def jobs(self):
        return [job for batch in self.batches for job in batch]

    def launch(self, jobs, first):
        assert first == len(self.jobs)
        self.batches.append([dict(override.split("=", 1) for override in job) for job in jobs])
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=self.scores(job)) for job in self.batches[-1]]


def run(folder, scores, *overrides, sweeper="optuna", plots=False):
    """What was launched for `train -m hydra/sweeper=... OVERRIDES` with these scores, and the search."""
    settings = [o for o in overrides if o.startswith(("hydra.", "sweep.", "seed=4"))]
    axes = [o for o in overrides if not o.startswith("hydra.")]
    if sweeper == "optuna":
        settings.append(f"hydra.sweeper.storage=journal:{folder / 'optuna.log'}")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"hydra/sweeper={sweeper}", *settings], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        node = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        made = {"random": search.RandomSearch, "optuna": optuna_search.OptunaSearch}[sweeper](
            **{k: v for k, v in node.items() if k != "_target_"}
        )
        made.multirun, made.loader = config, GlobalHydra.instance().config_loader()
        made.launcher, made.folder = Launcher(scores), folder
        if not plots:
            made._plot = lambda *given: None  # they take a second
        try:
            made.sweep([*axes, "sweep.id=s"])
        except KeyboardInterrupt:
            made.launcher.interrupted = True
    return made.launcher, made


def near_3e_3(job):
    return -abs(math.log10(float(job["optimizer.learning_rate"])) + 2.5)
