"""What every caller of a service of Tally needs: addresses, channels, service config, answers.

This client uses it, and so do the services where they call one another. It imports nothing of
either.
"""
