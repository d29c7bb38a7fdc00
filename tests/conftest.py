from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("overpaint", deadline=None)
settings.load_profile("overpaint")
