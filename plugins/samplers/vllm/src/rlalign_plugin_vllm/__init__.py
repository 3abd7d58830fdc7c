"""vLLM servers that sample the policy's responses."""

from rlalign_plugin_vllm.sampler import VLLM

__all__ = ["VLLM"]
