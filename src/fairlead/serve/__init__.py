"""The OpenAI-compatible endpoint: what was judged is what is served."""
