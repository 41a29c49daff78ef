"""The nouns and protocols; plan, keys, records, ledger. No torch anywhere in this room."""
