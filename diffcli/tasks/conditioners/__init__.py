"""Conditioners turn named fields of a batch into the inputs (slots) of a network: classes, texts, embeddings, pictures."""
