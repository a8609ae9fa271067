"""Whole numbers that refuse what compiled code would compute differently."""


class Whole(int):
    """An int that refuses the divisions on which Python and compiled code disagree."""

    def __floordiv__(self, other):
        assert self >= 0
        assert other > 0
        return Whole(int(self) // other)

    def __mod__(self, other):
        assert self >= 0
        assert other > 0
        return Whole(int(self) % other)

    def __add__(self, other):
        return Whole(int(self) + other)

    def __sub__(self, other):
        return Whole(int(self) - other)

    def __mul__(self, other):
        return Whole(int(self) * other)

    def __neg__(self):
        return Whole(-int(self))

    def __rsub__(self, other):
        return Whole(other - int(self))

    __radd__, __rmul__ = __add__, __mul__
