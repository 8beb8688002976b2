"""Low-rank changes of models: how a run trains them, and how they are put into the weights that are drawn from."""
