"""Metrics of generated text, each a reward and a metric."""
