"""CLIPSep and CLIPSep-NIT in JAX: pull a sound out of a mixture with a sentence."""
