"""A method that makes claims: it fits no task that needs a subject."""


class ToyClaims:
    name = "toy_claims"
    makes = "claims"


def plugin(variant, options):  # noqa: ARG001
    return ToyClaims()
