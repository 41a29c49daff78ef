"""Where a model misreads its prompt: which latent, at which word, and what the word is taken for."""
