"""The maths: schedules, samplers, guidance, prompts, and the one loop that runs them."""
