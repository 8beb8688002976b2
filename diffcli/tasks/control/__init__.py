"""Control of a trained diffusion model by pictures: its key of a preset, what fills that in, and the task that trains it."""
