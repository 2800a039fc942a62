"""From a prompt to a continuation: prefill, decoding, sampling, stop rules. It knows ids and text, no framework."""
