"""How a decoder knows where a token stands: one file per kind, chosen by the `position` group of the configuration.

A kind that is `in_attention` is a field of the attention: it turns queries and keys, or adds to their scores. Any other
adds something to the embedding.
"""
