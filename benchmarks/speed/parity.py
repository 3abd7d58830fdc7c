"""Both sides do the same work: the same weights and responses give the same gradient. And what padding does to TRL.

    python -m benchmarks.speed.parity tiny/rloo/S/float32 --folder MODEL

`tests/test_beside_trl.py` compares many more cases, with policies that have moved and other options.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from benchmarks.common import shapes
from benchmarks.speed.theirs import Clock, trainer
from benchmarks.speed.work import COMPONENTS, Row, pipeline, row_of
from torch import Tensor

from rlalign.data.batch import Batch
from rlalign.testing.bench import Bench

NEAR = 1e-3
"""Of the gradient's norm: float32 summed in another order, 10⁻⁶ in two layers, 2·10⁻⁴ in thirty."""
PADS = (0, 1, 4, 8)


def parity(row: Row, folder: Path, place: Path) -> dict[str, Any]:
    """Tokens of prompts and responses on both sides, and how far their gradients are from each other."""
    said = pipeline(row, folder, 1)
    # We take log-probs among the tokens that may come; TRL among all, also where it bans the end.
    said["generation"] = {**said["generation"], "min_new_tokens": 0}
    bench = Bench(place / "ours", said, COMPONENTS)
    batch = bench.batch()
    _, ours = bench.gradient(batch)
    made = trainer(row, folder, place, 1, Clock(lambda: None))
    data = _pairs(made, batch) if row.algorithm == "dpo" else _grouped(made, batch, row)
    loss = made.compute_loss(made.model, data)
    loss.backward()
    theirs = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    return {"far": far(ours, theirs), **work(row, batch, data)}


def far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm."""
    renamed = {name.removeprefix("policy/model."): grad.double() for name, grad in ours.items()}
    if missing := theirs.keys() ^ renamed.keys():
        raise ValueError(f"one side only has {sorted(missing)[:3]}")
    apart = sum(float((renamed[name] - grad).square().sum()) for name, grad in theirs.items())
    whole = sum(float(grad.double().square().sum()) for grad in theirs.values())
    return (apart / whole) ** 0.5


def work(row: Row, batch: Batch, data: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tokens of each side."""
    rollout = batch.rollout
    prompts = sum(len(rollout.inputs[int(g)]) for g in rollout.group_N)
    ours = {
        "responses": len(rollout),
        "prompt tokens": prompts,
        "response tokens": int(rollout.length_N.sum()),
    }
    if row.algorithm == "dpo":
        chosen = int(data["completion_mask"].sum())
        whole = int(data["attention_mask"].sum())
        theirs = {
            "responses": len(data["input_ids"]),
            "prompt tokens": whole - chosen,
            "response tokens": chosen,
        }
    else:
        theirs = {
            "responses": len(data["completion_ids"]),
            "prompt tokens": int(data["prompt_mask"].sum()),
            "response tokens": int(data["completion_mask"].sum()),
        }
    return {"ours": ours, "trl": theirs}


def _grouped(made: Any, batch: Batch, row: Row) -> Any:
    """Our sampled responses where TRL would sample."""
    rollout = batch.rollout
    ids = [a[:n].tolist() for a, n in zip(rollout.actions_NT, rollout.length_N.tolist(), strict=True)]
    made._generate_single_turn = lambda *_: (ids, None) if row.algorithm == "grpo" else ids
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    data: Any = made._generate_and_score_completions(
        [{"prompt": rollout.examples[int(g)].prompt} for g in rollout.group_N]
    )
    return data


def _pairs(made: Any, batch: Batch) -> Any:
    """The pairs of our draw, which come in an order of their own."""
    rows = [
        {"prompt": e.prompt, "chosen": f" {e.responses[0]}", "rejected": f" {e.responses[1]}"}
        for e in batch.rollout.examples
    ]
    fresh = type(made)(
        model=made.model,
        processing_class=made.processing_class,
        train_dataset=datasets.Dataset.from_list(rows),
        args=made.args,
    )
    data: Any = fresh._prepare_inputs(fresh.data_collator(list(fresh.train_dataset)))
    made.compute_loss = fresh.compute_loss
    return data


@torch.no_grad()
def padding(row: Row, folder: Path, place: Path) -> dict[str, float]:
    """By how many nats TRL's log-probs of a response move when its prompt is padded on the left."""
    made = trainer(row, folder, place, 1, Clock(lambda: None))
    made.model.eval()
    generator = torch.Generator().manual_seed(0)
    prompt, new = row.shape.prompt, row.shape.new
    ids = torch.randint(shapes.FIRST, 900, (4, prompt + new), generator=generator)

    def logprobs(pads: int) -> Tensor:
        before = torch.full((len(ids), pads), shapes.PAD)
        mask = torch.cat([torch.zeros_like(before), torch.ones_like(ids)], 1)
        found: Tensor = made._get_per_token_logps_and_entropies(
            made.model, torch.cat([before, ids], 1), mask, new
        )[0]
        return found

    alone = logprobs(0)
    return {str(pads): float((logprobs(pads) - alone).abs().max()) for pads in PADS}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("row")
    ask.add_argument("--folder", type=Path, required=True)
    said = ask.parse_args()
    row = row_of(said.row)
    with tempfile.TemporaryDirectory() as place:
        found = parity(row, said.folder, Path(place))
        if row.algorithm == "rloo" and row.model != "real":
            found["moved by padding"] = padding(row, said.folder, Path(place) / "padding")
    print(json.dumps(found))
    if found["ours"] != found["trl"] or found["far"] > NEAR:
        raise SystemExit(f"{row.name}: the two sides do not do the same work: {found}")


if __name__ == "__main__":
    main()
