"""What a pipeline would take of a machine, by a cost model: pure functions of numbers (docs/machines.md)."""
