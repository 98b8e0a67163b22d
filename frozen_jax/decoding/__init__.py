"""Decoding: from a method's two predict functions (prefill, decode) to generated token ids."""
