"""Every task of the package does what every task must, on its sample."""

from __future__ import annotations

import pytest

from rlalign.testing import TaskTests

pytestmark = pytest.mark.filterwarnings("ignore:.*left out:UserWarning")


class OfASample(TaskTests):
    options = {"sample": True}
    other_options = {"limit": 1}
    splits = ("train", "val", "test")


class TestHH(OfASample):
    component = "hh"


class TestRedditComments(OfASample):
    component = "reddit-comments"


class TestWizardOfWikipedia(OfASample):
    component = "wizard-of-wikipedia"


class TestFaithDial(OfASample):
    component = "faithdial"


class TestComet(OfASample):
    component = "comet"


class TestTLDR(OfASample):
    component = "tldr"
