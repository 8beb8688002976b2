"""The mathematics: x_t = alpha_t x0 + sigma_t eps for t in [0, 1], t = 0 clean, t = 1 noise; a step goes from t to s < t."""
