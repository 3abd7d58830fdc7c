"""Leaderboards: any algorithm on every task of a suite, each finished run an entry that can be checked."""
