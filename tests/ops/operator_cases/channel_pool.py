"""Statistics over the positions, by plain formulas."""


def examples(x):
    return [{"x": x, "maximum": True}, {"x": x, "maximum": False}]


def plain(x, maximum):
    return {"mean": x.mean((2, 3))} | ({"max": x.amax((2, 3))} if maximum else {})
