"""What turns named fields of a batch into the slots that a network is told: classes, texts, embeddings."""
