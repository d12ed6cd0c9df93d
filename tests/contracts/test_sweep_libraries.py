"""Private names of Hydra and Optuna that sweeps rely on, and what breaks when they change."""

import inspect

import optuna
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus

from mnist_exp.config import CONF_DIR


def test_hydra_s_sweeper_checks_jobs_in_the_method_that_our_grid_replaces():
    """Otherwise `hydra/sweeper=grid` composes every job once more, which takes longer but stays right."""
    assert list(inspect.signature(BasicSweeper.validate_batch_is_legal).parameters) == ["self", "batch"]
    assert "self.validate_batch_is_legal(" in inspect.getsource(BasicSweeper.sweep)


def test_a_job_s_result_is_made_of_its_private_field():
    """Otherwise `hydra/launcher=processes` returns no results."""
    assert JobReturn(status=JobStatus.COMPLETED, _return_value=0.5).return_value == 0.5


def test_a_job_that_ended_keeps_its_result_and_not_its_configs(tmp_path):
    """Otherwise each run of a sweep takes longer than the one before: Keras walks over the configs of all."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        done = hydra.run("train", lambda config: config.seed, ["seed=3", f"hydra.run.dir={tmp_path}"])
    assert (done.return_value, done.cfg, done.hydra_cfg) == (3, None, None)


def test_another_process_finds_a_trial_by_its_private_number():
    """Otherwise a pruner cannot end a run that another process trains."""
    study = optuna.create_study()
    asked = study.ask()
    optuna.trial.Trial(study, asked._trial_id).set_user_attr("found", True)
    assert study.trials[asked.number].user_attrs == {"found": True}
