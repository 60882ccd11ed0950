"""Fixtures of stores: an empty one of each kind, and files that need not survive a power cut."""

import os

import pytest

from stores import KINDS, empty


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test here switches the power off."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=KINDS)
def make(request, tmp_path):
    """Makes empty stores of one kind."""
    return lambda: empty(request.param, tmp_path)


@pytest.fixture
def store(make):
    return make()
