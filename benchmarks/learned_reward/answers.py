"""The claims of README.md, each answered from the numbers by the rules named there."""
