"""From texts with a label to executable hypotheses: dictionaries on embeddings, selection, predicates, labels."""
