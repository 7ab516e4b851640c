"""How many runs at once are found, on a machine that is simulated: its clock, its memory, and what steps take on it."""

import pytest

from csham.study.room import Room


class Machine:
    """A device that does at most ``width`` runs' steps at once as fast as one, and holds ``memory`` runs."""

    def __init__(self, width, memory=100.0, seconds=0.01):
        self.width, self.memory, self.seconds = width, memory, seconds
        self.now, self.under_way, self.alone = 0.0, [], []

    def clock(self):
        return self.now

    def synchronize(self):
        pass

    def held(self):
        return float(len(self.under_way))

    def free(self):
        return self.memory - len(self.under_way)


def run(machine, most=None, kinds=("plain",), steps=4000, lengths=10**9):
    """Train for so many rounds, as a worker and its engine do; return the room at the end."""
    room = Room(most, machine, machine.clock)
    begun, left, highest = 0, {}, 0
    for _ in range(steps):
        while len(left) < room.runs:
            name, kind = f"run {begun}", kinds[begun % len(kinds)]
            room.begin(name, kind)
            left[name], begun = lengths, begun + 1
        highest = max(highest, len(left))
        turns = room.turns(list(left))
        machine.alone += [turns[0]] * (len(turns) == 1 < len(left))
        costs = [1 + kinds.index(room._kinds[name]) for name in turns]
        machine.now += machine.seconds * max(*costs, sum(costs) / machine.width)
        for name in turns:
            if name not in machine.under_way:
                machine.under_way.append(name)
                machine.now += 2.0  # it starts
            room.worked(name, 128)
            left[name] -= 1
            if not left[name]:
                del left[name]
                machine.under_way.remove(name)
                room.end(name)
    return room, highest


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_as_many_at_once_as_gain(width):
    room, highest = run(Machine(width))
    assert room.runs == width
    assert highest == width + 1  # the first that does not gain goes on to its end


def test_no_more_than_the_memory_holds():
    room, highest = run(Machine(8, memory=4.5))
    assert room.runs == highest == 4  # 0.5 free is less than the 1.25 that a run needs


def test_a_network_is_measured_alone_once():
    machine = Machine(4)
    room, _ = run(machine, kinds=("plain", "twice as slow"), steps=8000, lengths=5000)
    assert room.runs == 6  # a round takes twice as long as the fast ones, so that four do not fill it
    assert set(machine.alone) == {"run 1"}  # the first one was alone anyway


def test_a_number_that_is_given_is_kept_and_nobody_waits():
    machine = Machine(1)
    room, highest = run(machine, most=5)
    assert room.runs == highest == 5
    assert machine.alone == []


def test_who_finds_no_memory_leaves_room_for_fewer():
    machine = Machine(4)
    room = Room(4, machine, machine.clock)
    for number in range(3):
        room.begin(str(number), "plain")
    room.shrink()
    room.end("2")
    assert room.runs == 2
    room.shrink()
    room.shrink()
    assert room.runs == 1
