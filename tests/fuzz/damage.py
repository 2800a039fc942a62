"""Damages values and bytes at random: what every kind of file that is fuzzed has in common. It knows no file."""

import copy
import json

# Values that programs trip over, in any place of a JSON file.
ODD = [
    None, True, False, 0, 1, -1, 2, 7, 8, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**9, 10**30, 10**4000, -(2**63),
    0.0, -0.0, 0.5, 1.0, 12.0, 1e9, 1e308, 1e-320, float("nan"), float("inf"), "", "0", "12", "x", "F32", "F64", "BF16",
    "I8", "gpt2", "llama", "../x", "/etc/passwd", "\0", "\x1b[2J", "\ud800", "ä", "𝒳" * 50, "x" * 5000, [], {},
    [0], [0, 0], [[]], [1] * 100, {"": 0}, {"rope_type": "default", "rope_theta": 5.0}, {"type": "linear"}, [2**63, 0],
    [0, 2**64],
]  # fmt: skip


def odd(rng):
    return copy.deepcopy(rng.choice(ODD))


def places(value, path=()):
    """The path to every value inside a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def damage(rng, value):
    """`value` with a few places changed: another value, a key gone, doubled or renamed, a number a little off."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        all_places = [path for path in places(value) if path]
        if not all_places or rng.random() < 0.01:
            return odd(rng)
        path = rng.choice(all_places)
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        key, old = path[-1], parent[path[-1]]
        action = rng.randrange(7)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[rng.choice(["x", "", "__metadata__", "model_type", "\ud800", "dtype"])] = old
        elif action == 2 and type(old) is int:
            parent[key] = old + rng.choice([-8, -4, -1, 1, 4, 8, 1000])
        elif action == 3 and isinstance(old, list):
            rng.shuffle(old)
        elif action == 4 and isinstance(old, list):
            old.append(odd(rng))
        elif action == 5:
            other = value
            for step in rng.choice(all_places):
                if isinstance(other, (dict, list)):
                    other = other[step] if not isinstance(other, dict) or step in other else other
            parent[key] = json.loads(json.dumps(other))
        else:
            parent[key] = odd(rng)
    return value


def damage_bytes(rng, data):
    """`data` with bytes changed, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 8, 100])
        action = rng.randrange(5)
        if action == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif action == 1:
            del data[at : at + length]
        elif action == 2:
            data[at:at] = data[at : at + length]
        elif action == 3:
            data[at:at] = rng.choice([b'"', b"{", b"}", b"[", b",", b":", b"\\u0000", b"\xff", b"9" * length, b"\0"])
        else:
            del data[at:]
    return bytes(data)


def dumped(rng, value):
    """The value as JSON text; now and then damaged as text too, or wrapped until it is very deep."""
    data = json.dumps(value).encode()
    chance = rng.random()
    if chance < 0.2:
        return damage_bytes(rng, data)
    if chance < 0.22:
        depth = rng.choice([100, 1000, 100_000])
        return b'{"a":' * depth + data + b"}" * depth
    if chance < 0.24:
        return (
            b'{"a":[' + rng.choice([b"[],", b"{},", b"0,", b'"",', b'{"":[]},']) * rng.choice([10**4, 10**6]) + b"0]}"
        )
    return data


def put(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
