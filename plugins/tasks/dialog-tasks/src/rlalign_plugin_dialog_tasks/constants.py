"""What the tasks of this package share beside the frame."""

from __future__ import annotations

from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
SEED = 901
"""A-LoL's."""
