"""Language models of the transformers library as policies and values."""

from rlalign_plugin_hf.causal import CausalLM
from rlalign_plugin_hf.seq2seq import Seq2SeqLM
from rlalign_plugin_hf.value import ValueHead

__all__ = ["CausalLM", "Seq2SeqLM", "ValueHead"]
