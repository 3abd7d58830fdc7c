"""What is fuzzed: pipelines, overrides, rows of data, run folders and model folders."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from mutations import VALUES, change_bytes, change_json, change_text, change_tree, paths

import rlalign

ROOT = Path(__file__).resolve().parents[2]
TRAP = "trap_beside"
"""A module that lies beside the files of others: importing it is a failure."""

Case = Callable[[], object]

TOY: dict[str, Any] = {
    "task": "bandit",
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout", {"kl": {"coef": 0.1}}],
    "algorithm": "rloo",
    "generation": {"samples": 4, "max_new_tokens": 1},
    "train": {"iterations": 4, "prompts": 4, "keep_responses": True},
    "evaluate": {"every": 2, "examples": 4},
    "checkpoints": {"every": 1, "last": 2},
}


class Target:
    """A kind of input: prepared once, then one case from each seed."""

    def __init__(self, folder: Path) -> None:
        """Make what all cases share."""
        self.folder = folder
        self.outside = folder / "outside"
        self._restore()
        self.prepare()

    def prepare(self) -> None: ...

    def case(self, rng: random.Random, inside: Path) -> Case:
        """An input in the folder `inside`, and what is done with it."""
        raise NotImplementedError

    def harmed(self) -> str | None:
        """What a case changed that is not its own; it is put back for the next one."""
        there = sorted(p.name for p in self.outside.rglob("*"))
        if there == ["canary.txt"] and (self.outside / "canary.txt").read_text() == "as it was":
            return None
        self._restore()
        return f"changed what lies outside, where now is {there}"

    def _restore(self) -> None:
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir()
        (self.outside / "canary.txt").write_text("as it was")


class Pipelines(Target):
    """A pipeline file, loaded and checked."""

    def prepare(self) -> None:
        self.texts = [p.read_text() for p in sorted(ROOT.glob("examples/**/*.yaml"))]
        self.trees = [yaml.safe_load(text) for text in self.texts]

    def case(self, rng: random.Random, inside: Path) -> Case:
        file = inside / "pipeline.yaml"
        if rng.random() < 0.6:
            tree = rng.choice(self.trees)
            for _ in range(rng.choice([1, 1, 2, 5])):
                tree = change_tree(tree, rng, self.trees)
            file.write_text(yaml.safe_dump(tree, sort_keys=False))
        else:
            text = rng.choice(self.texts)
            for _ in range(rng.choice([1, 1, 3])):
                text = change_text(text, rng)
            data = text.encode("utf-8", "surrogatepass")
            file.write_bytes(change_bytes(data, rng) if rng.random() < 0.2 else data)
        return lambda: rlalign.load(file).check()


class Overrides(Target):
    """A sound pipeline with `key=value` from the command line."""

    def prepare(self) -> None:
        self.files = sorted(ROOT.glob("examples/**/*.yaml"))
        self.keys = {f: [p for p in paths(yaml.safe_load(f.read_text())) if p] for f in self.files}

    def case(self, rng: random.Random, inside: Path) -> Case:
        file = rng.choice(self.files)
        changes = [self._change(rng, rng.choice(self.keys[file])) for _ in range(rng.choice([1, 1, 2, 4]))]
        return lambda: rlalign.load(file, changes).check()

    def _change(self, rng: random.Random, keys: tuple[str | int, ...]) -> str:
        text = ".".join(map(str, keys))
        if rng.random() < 0.3:
            text = rng.choice(
                [text + ".x", text[:-1], f"phases.0.{text}", text.upper(), "." + text, text + ".0", ""]
            )
        value = rng.choice(VALUES)
        said = value if isinstance(value, str) else json.dumps(value)
        return (
            text
            + rng.choice(["=", "=", "=", "==", ""])
            + rng.choice([said, said, change_text(said or "x", rng)])
        )


OPTIONS = (
    *("prompt", "responses", "id", "splits", "limit", "chat", "join", "references", "lines"),
    *("style", "system", "turn", "gather", "encoding"),
)
"""Of `dataset`, which may hold anything."""


class Rows(Target):
    """A file of data in each format, read through the task `dataset`."""

    def prepare(self) -> None:
        rows = [
            {"prompt": f"question {i}", "responses": ["yes", "no"], "scores": [1.0, 0.5], "meta": {"n": i}}
            for i in range(6)
        ]
        jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
        csv = b"prompt,responses,scores\n" + b"".join(b'"what, %d?",yes,0.5\n' % i for i in range(6))
        self.files = {
            "rows.jsonl": jsonl,
            "rows.json": json.dumps(rows).encode(),
            "rows.csv": csv,
            "rows.tsv": csv,
            "rows.txt": "one é\r\n\ntwo\x85\n".encode(),
            "rows.jsonl.gz": gzip.compress(jsonl),
            "rows.csv.gz": gzip.compress(csv) + gzip.compress(csv[25:]),
        }
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            return
        made = self.folder / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made)
        self.files["rows.parquet"] = made.read_bytes()

    def case(self, rng: random.Random, inside: Path) -> Case:
        name = rng.choice(list(self.files))
        data = self.files[name]
        for _ in range(rng.choice([1, 1, 3])):
            is_json = name.endswith((".json", ".jsonl"))
            data = (change_json if rng.random() < 0.6 and is_json else change_bytes)(data, rng)
        (inside / name).write_bytes(data)
        options: dict[str, Any] = {"path": str(inside / name)}
        if name == "rows.txt":
            options["prompt"] = "text"
        if rng.random() < 0.1:
            options |= {"path": str(inside), "lines": {"text": name}, "prompt": "text"}
        if rng.random() < 0.1:
            options |= rng.choice([{"gather": True}, {"style": "chat"}, {"encoding": "latin-1"}])
        if rng.random() < 0.3:
            options[rng.choice(OPTIONS)] = rng.choice(VALUES)
        if rng.random() < 0.3:
            options["bad_rows"] = rng.choice(["error", "skip"])
        pipeline = {**TOY, "task": {"dataset": options}, "rewards": ["kl"]}
        pipeline.pop("evaluate")

        def work() -> None:
            task = rlalign.load(pipeline).settings.phases[0].task
            for example in task.cls(task.options).examples("train"):
                assert example.prompt is not None

        return work


class Runs(Target):
    """Somebody's run folder, gone on with, evaluated, sampled and exported."""

    def prepare(self) -> None:
        runs = self.folder / "runs"
        rlalign.run(TOY, root=runs, name="finished", display=False)

        def stop(row: Mapping[str, Any]) -> None:
            if row["iteration"] == 3:
                raise rlalign.ConfigError("stop here")

        try:
            rlalign.run(
                TOY, root=runs, name="halfway", display=False, callbacks=rlalign.Callbacks(on_iteration=stop)
            )
        except rlalign.ConfigError:
            pass
        self.runs = [runs / "finished", runs / "halfway"]

    def case(self, rng: random.Random, inside: Path) -> Case:
        run = inside / "run"
        shutil.copytree(rng.choice(self.runs), run)
        _lay_trap(inside, run)
        for _ in range(rng.choice([1, 1, 2])):
            self._damage(rng, run)
        return rng.choice(
            [
                lambda: rlalign.resume(run, display=False),
                lambda: rlalign.resume(run, display=False, inexact=True),
                lambda: rlalign.resume(run, display=False, previous=True),
                lambda: rlalign.open(run).evaluate(),
                lambda: rlalign.open(run).sample(["go"]),
                lambda: rlalign.open(run).export(inside / "model"),
                lambda: rlalign.Result(run).export_responses(inside / "rows.jsonl"),
                lambda: (
                    rlalign.Result(run).metrics,
                    rlalign.Result(run).samples,
                    rlalign.Result(run).learned,
                ),
            ]
        )

    def _damage(self, rng: random.Random, run: Path) -> None:
        there = sorted(p for p in run.rglob("*") if not p.is_symlink())
        if not there:
            return
        path = rng.choice([p for p in there if p.is_file()] or there)
        kind = rng.randrange(10)
        if kind <= 3 and path.suffix in (".json", ".jsonl") and path.is_file():
            path.write_bytes(change_json(path.read_bytes(), rng))
        elif kind <= 3 and path.suffix == ".yaml" and path.is_file():
            path.write_text(_change_yaml(path.read_text(errors="replace"), rng))
        elif kind <= 6 and path.is_file():
            path.write_bytes(change_bytes(path.read_bytes(), rng))
        elif kind == 7:
            target = rng.choice([self.outside, self.outside / "canary.txt", self.outside / "new.txt"])
            path = rng.choice(there)
            _remove(path)
            path.symlink_to(target, target_is_directory=target == self.outside)
        elif kind == 8:
            path = rng.choice(there)
            _remove(path)
            if rng.random() < 0.5:
                path.mkdir()
        else:
            name = rng.choice([".tmp-mine", ".old-mine", "00000099", ".running", "events", "bad-batch"])
            if not os.path.lexists(path.parent / name):
                (path.parent / name).mkdir()


class Models(Target):
    """Somebody's model folder, evaluated and sampled."""

    def prepare(self) -> None:
        from rlalign_plugin_hf.testing import tiny_model

        done = rlalign.run({**TOY, "train": {"iterations": 1}}, root=self.folder, name="toy", display=False)
        self.models = [done.folder / "model"]
        self.models += [tiny_model(self.folder / kind, kind) for kind in ("causal-lm", "seq2seq-lm")]

    def case(self, rng: random.Random, inside: Path) -> Case:
        model = inside / "model"
        shutil.copytree(rng.choice(self.models), model)
        _lay_trap(inside, model)
        files = sorted(p for p in model.rglob("*") if p.is_file() and p.suffix != ".py")
        for _ in range(rng.choice([1, 1, 2])):
            file = rng.choice(files)
            if file.name == "config.json" and rng.random() < 0.4:
                _say(file, rng)
            else:
                change = change_json if file.suffix == ".json" and rng.random() < 0.7 else change_bytes
                file.write_bytes(change(file.read_bytes(), rng))
        return lambda: rlalign.open(model, task="bandit").sample(["one"], max_new_tokens=4)


TARGETS: Mapping[str, type[Target]] = {
    "pipelines": Pipelines,
    "overrides": Overrides,
    "rows": Rows,
    "runs": Runs,
    "models": Models,
}


def _lay_trap(inside: Path, beside: Path) -> None:
    """A component that a file could name, where Python might find it."""
    code = "from rlalign import Component\n\n\nclass Trap(Component):\n    pass\n"
    for folder in (inside, beside):
        (folder / f"{TRAP}.py").write_text(code)


def _say(file: Path, rng: random.Random) -> None:
    """A model's config.json that names code."""
    said = json.loads(file.read_text())
    said |= rng.choice(
        [
            {"model": f"{TRAP}:Trap"},
            {"auto_map": {"AutoConfig": f"{TRAP}.Trap", "AutoModelForCausalLM": f"{TRAP}.Trap"}},
            {"model_type": TRAP},
            {"architectures": [TRAP]},
        ]
    )
    file.write_text(json.dumps(said))


def _change_yaml(text: str, rng: random.Random) -> str:
    try:
        return yaml.safe_dump(change_tree(yaml.safe_load(text), rng), sort_keys=False)
    except (yaml.YAMLError, TypeError, RecursionError):
        return change_text(text, rng)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
