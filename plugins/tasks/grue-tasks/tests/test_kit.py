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


class TestWMT16(OfASample):
    component = "wmt16"


class TestIWSLT17(OfASample):
    component = "iwslt17"


class TestMulti30k(OfASample):
    component = "multi30k"


class TestNarrativeQA(OfASample):
    component = "narrative-qa"


class TestDailyDialog(OfASample):
    component = "daily-dialog"


class TestDailyDialogPlusPlus(OfASample):
    component = "daily-dialog"
    options = {"sample": True, "data": "plusplus", "responses": "all"}
    other_options = {"responses": "adversarial"}


class TestGSM8K(OfASample):
    component = "gsm8k"
