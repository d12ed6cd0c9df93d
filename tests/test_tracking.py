"""What the store is told, and what it must not be."""

import pytest

from mnist_exp import tracking


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://user:token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://token@example.org/a", "https://example.org/a"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/home/me/a@b", "/home/me/a@b"),
    ],
)
def test_no_password_of_a_repository_is_recorded(address, kept, monkeypatch):
    found = {"mlflow.source.git.repoURL": address, "mlflow.user": "a//b@c"}
    monkeypatch.setattr(tracking.mlflow.tracking.context.registry, "resolve_tags", lambda tags: {**tags, **found})
    assert tracking._context({"kind": "run"}) == {**found, "kind": "run", "mlflow.source.git.repoURL": kept}
