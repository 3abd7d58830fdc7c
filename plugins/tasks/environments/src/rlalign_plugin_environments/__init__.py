"""Environments: tools that a chat model may call, and other people's games."""
