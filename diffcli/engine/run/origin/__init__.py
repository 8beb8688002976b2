"""How a run starts from the weights of another model: what is read of it, what of it fits, and what is taken."""
