"""Rewards in processes of their own, on this machine or another."""
