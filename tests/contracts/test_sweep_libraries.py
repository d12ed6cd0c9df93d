"""Private names of Hydra and Optuna that sweeps rely on, and what breaks when they change."""

import inspect

import optuna
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus


def test_hydra_s_sweeper_checks_jobs_in_the_method_that_our_grid_replaces():
    """Otherwise `hydra/sweeper=grid` composes every job once more, which takes longer but stays right."""
    assert list(inspect.signature(BasicSweeper.validate_batch_is_legal).parameters) == ["self", "batch"]
    assert "self.validate_batch_is_legal(" in inspect.getsource(BasicSweeper.sweep)


def test_a_job_s_result_is_made_of_its_private_field():
    """Otherwise `hydra/launcher=processes` returns no results."""
    assert JobReturn(status=JobStatus.COMPLETED, _return_value=0.5).return_value == 0.5


def test_another_process_finds_a_trial_by_its_private_number():
    """Otherwise a pruner cannot end a run that another process trains."""
    study = optuna.create_study()
    asked = study.ask()
    optuna.trial.Trial(study, asked._trial_id).set_user_attr("found", True)
    assert study.trials[asked.number].user_attrs == {"found": True}
