"""Knowledge-enhanced drafting and lossless speculative decoding."""
