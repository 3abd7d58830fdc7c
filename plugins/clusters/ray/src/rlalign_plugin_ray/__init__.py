"""Runs, rewards, episodes and studies on a cluster of Ray."""

from rlalign_plugin_ray.cluster import Ray

__all__ = ["Ray"]
