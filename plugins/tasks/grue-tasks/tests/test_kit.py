"""Every task of the package does what every task must, on its sample."""

from __future__ import annotations

from rlalign.testing import TaskTests


class OfASample(TaskTests):
    options = {"sample": True}
    other_options = {"limit": 1}
    splits = ("train", "val", "test")


class TestIMDB(OfASample):
    component = "imdb"


class TestCommonGen(OfASample):
    component = "common-gen"


class TestCNNDailyMail(OfASample):
    component = "cnn-daily-mail"


class TestToTTo(OfASample):
    component = "totto"


class TestE2E(OfASample):
    component = "e2e"
