"""New words of the text encoders of a model: how a run learns one, and how words of elsewhere are read and written."""
