"""Which finished run is the result of a job, and what keeps another from being it."""

import json
from types import SimpleNamespace

import pytest

from mnist_exp import provenance, tracking
from mnist_exp.config import PACKAGE, check, identity
from mnist_exp.experiment import prepare
from mnist_exp.provenance.modules import user_code
from mnist_exp.sweep import reuse
from tests.helpers.configs import composed
from tests.helpers.stored_runs import finished as run

FACTS = {"source": "abc", "data": "def", "threads": 1, "versions": {"keras": "3.15.0", "numpy": "2.4.6"}}


FACTS |= {"onednn": "default", "variables": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"source": "xyz"}, "not the same code"),
        ({"data": "xyz", "source": "xyz"}, "not the same code, data"),
        ({"threads": 2}, "not the same threads (1, now 2)"),
        ({"versions": {"keras": "3.15.1"}}, "not the same keras (3.15.0, now 3.15.1), numpy (2.4.6, now none)"),
        ({"onednn": "1"}, "not the same onednn (default, now 1)"),
        ({"variables": {"XLA_FLAGS": "x"}}, "not the same variables.XLA_FLAGS (none, now x)"),
        ({"keras_config": {"floatx": "float32"}, "processor": {"cpu": "x"}}, "no record of keras_config, processor"),
        ({"source": "xyz", "processor": {"cpu": "x"}}, "not the same code, and no record of processor"),
    ],
)
def test_what_differs_between_two_runs_of_one_config(change, said):
    assert reuse.difference(FACTS, {**FACTS, **change}) == said


@pytest.fixture
def job(monkeypatch):
    """Whether a job of sweep A has a result, given finished runs of its config; and what joined the sweep."""
    monkeypatch.setattr(provenance, "environment_factors", lambda *_: FACTS)

    def ask(finished, *overrides):
        config = check(composed("data=digits", "sweep.id=A", *overrides))
        joined = []
        found = [run(**{"identity": identity(config, FACTS)} | tags) for tags in finished]
        for made in found:
            for key in [key for key, text in made.tags.items() if text is None]:
                del made.tags[key]
        monkeypatch.setattr(tracking, "finished_runs", lambda store, digest: found)
        monkeypatch.setattr(tracking, "join_sweep", lambda store, run, *where: joined.append((run.run_id, *where)))
        experiment = prepare(config, SimpleNamespace(fingerprint="def"), "cpu")
        known = reuse.take_finished(experiment, None, 7)
        return known and known.metrics["final_val_accuracy"], joined

    return ask


def test_a_finished_run_of_the_same_identity_is_the_result_of_a_job(job, capsys):
    assert job([{"identity": "other"}, {}]) == (0.9, [("id of x-s0", "A", 7, "mlp-adam-s0", "#f0e442")])
    assert capsys.readouterr().out == "mlp-adam-s0  val_accuracy 90.00%  test_accuracy 89.00%  reused\n"


def test_what_keeps_a_finished_run_from_being_used_is_named():
    before = run(**{"identity": "other", "identity.facts": json.dumps({**FACTS, "source": "xyz"})})
    now = SimpleNamespace(factors=FACTS)
    assert reuse.outdated(now, [run(), before]) == "not the same code"  # the newest has no record of its factors
    assert reuse.outdated(now, [run()]) is reuse.outdated(now, []) is None


def test_a_finished_run_that_lacks_what_is_read_of_it_is_not_used(job, capsys):
    assert job([{"identity": None}]) == (None, [])  # without identity.facts too, so nothing can be named
    assert capsys.readouterr().err == ""
    assert job([{}], "sweep.objective=[final_val_loss]") == (None, [])  # the run did not record it
    assert job([{}], "sweep.objective=[fit_seconds]")[1] == [("id of x-s0", "A", 7, "mlp-adam-s0", "#f0e442")]


def test_a_job_trains_when_nothing_is_finished_or_skipping_is_off(job, capsys):
    assert job([]) == (None, [])
    assert job([{"pruned": "true"}]) == (None, [])  # a search has ended it early
    assert job([{}], "sweep.skip_finished=false") == (None, [])
    assert capsys.readouterr() == ("", "")


def test_facts_are_those_that_identity_names():
    facts = provenance.environment_factors(PACKAGE, user_code(frozenset()), "abc", 2, "cpu")
    assert sorted(facts) == [
        *("data", "device", "keras_config", "onednn", "processor", "source", "threads", "variables", "versions"),
    ]
    assert (facts["data"], facts["threads"], facts["device"]) == ("abc", 2, "cpu")
    json.dumps(facts)
