"""Tests of properties have no deadline: on a busy machine a case may take a second, and that says nothing of it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("sevkvm", deadline=None)
settings.load_profile("sevkvm")
