"""From a prompt to a continuation: prefill, the decoding loop, sampling, stop rules. It knows ids and text, no framework."""
