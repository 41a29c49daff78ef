"""A check of the user's own, for tests."""


def long_enough(text, case):
    return len(text) > 6
