"""A method that wants a dictionary and does nothing with it."""

from fairlead.methods.toy_line import Line


class ToyWide:
    name = "toy_wide"
    makes = "subject"

    async def fit(self, ctx):
        assert ctx.dictionary is not None
        return Line("")

    def load(self, path):
        return Line("")


def plugin(variant, options):  # noqa: ARG001
    return ToyWide()
