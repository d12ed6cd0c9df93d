"""Names of the runs of a sweep: they say what it varies."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from mnist_exp.config import CONF_DIR, run_name
from mnist_exp.job import checked
from mnist_exp.job import compose as compose_run
from mnist_exp.sweep import grid, jobs

NAMES = {
    ("seed=0,1",): ["mlp-adam-s0", "mlp-adam-s1"],
    ("model=mlp,linear",): ["mlp-adam-s0", "linear-adam-s0"],
    ("optimizer.learning_rate=0.1,0.0010001,0.00814488697",): [
        f"mlp-adam-lr={text}-s0" for text in ("0.1", "0.0010001", "0.00814489")
    ],
    ("model.hidden=[32],[64,32],[]",): [f"mlp-adam-hidden={text}-s0" for text in ("32", "64-32", "none")],
    ("augment=none,[shift,rotate]",): ["mlp-adam-none-s0", "mlp-adam-shift-rotate-s0"],
    ("schedule=constant,cosine",): ["mlp-adam-constant-s0", "mlp-adam-cosine-s0"],
    ("data.folds=2", "data.fold=1", "model.dropout=0.0,0.5"): [f"mlp-adam-dropout={d}-s0-f1" for d in (0.0, 0.5)],
    ("name=a", "model=mlp,linear"): ["a-mlp-s0", "a-linear-s0"],
    ("name='${optimizer.learning_rate}'", "optimizer.learning_rate=1,2"): ["1-s0", "2-s0"],
    ("name=a,b",): ["a-s0", "b-s0"],
    ("trainer.threads=null,1",): ["mlp-adam-threads=none-s0", "mlp-adam-threads=1-s0"],
    ("data.path='/a b/c',/a/d",): ["mlp-adam-path=a-b-c-s0", "mlp-adam-path=a-d-s0"],
}


@pytest.mark.parametrize("given", NAMES)
def test_a_name_says_what_the_sweep_varies(given):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        fixed = [override for override in given if "," not in override]
        config = compose("train", fixed, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        expanded = grid.expand(config, given)
        label = grid.label(config, grid.varied(expanded))
        names = [run_name(job.config) for job in jobs.check_jobs("train", [[*job, *label] for job in expanded])]
    assert names == NAMES[given]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("init_from=mlp-lr=0.1-s0", "init_from='mlp-lr=0.1-s0'"),
        ("init_from=12e45678,ab12", "init_from='12e45678',ab12"),  # beginnings of ids, of which one looks like a number
        ("resume=01234567", "resume='01234567'"),
        ("name=true", "name='true'"),
        ("init_from=null", "init_from=null"),
        ("resume=ab12", "resume=ab12"),
        ("seed=1", "seed=1"),
    ],
)
def test_a_name_that_hydra_would_read_otherwise_gets_quotation_marks(given, wanted):
    assert checked([given]) == [wanted]


def test_the_beginning_of_an_id_that_looks_like_a_number_stays_as_it_is():
    assert compose_run(["init_from=12e45678", "name=1.10"]).config.init_from == "12e45678"
