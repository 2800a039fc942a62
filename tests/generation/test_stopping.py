"""Stop strings against a simple reference: however the text is cut into pieces, the same is shown, and stays shown."""

from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lab.generation.stopping import StopStrings


def reference(text, stops):
    """(what is shown, whether a stop string came), by looking at every beginning of the text."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def run(pieces, stops):
    stop, shown = StopStrings(stops), ""
    whole = "".join(pieces)
    fed = 0
    for piece in pieces:
        shown += stop.push(piece)
        fed += len(piece)
        expected, found = reference(whole[:fed], stops)
        # Nothing that a later piece could take back, and all that none could.
        assert expected.startswith(shown) and stop.found == found
        if not found:
            held = expected[len(shown) :]
            assert any(text.startswith(held) for text in stops) or not held
            assert all(not text.startswith(expected[cut:]) for cut in range(len(shown)) for text in stops)
    return shown + stop.flush(), stop.found


letters = st.text("ab", max_size=5)  # two letters, so that much overlaps
stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@settings(max_examples=400, deadline=None)
@given(st.lists(letters, max_size=8), stop_lists)
def test_against_the_reference(pieces, stops):
    assert run(pieces, stops) == reference("".join(pieces), stops)


@settings(max_examples=200, deadline=None)
@given(st.lists(letters, max_size=6), st.text("ab", min_size=1, max_size=4))
def test_one_stop_string_is_the_first_occurrence(pieces, stop):
    assert run(pieces, [stop])[0] == "".join(pieces).split(stop)[0]


def test_the_cut_does_not_matter():
    """ "b" is complete before "abc" is, also when they come in one piece."""
    assert run(["xabcd"], ["abc", "b"]) == run(["xab", "cd"], ["abc", "b"]) == ("xa", True)
    assert run(["xabc"], ["abc", "c"]) == run(list("xabc"), ["c", "abc"]) == ("x", True)


def test_nothing_follows_the_stop():
    stop = StopStrings(["END"])
    assert [stop.push(piece) for piece in ("a E", "N", "D b", "c")] == ["a ", "", "", ""]
    assert stop.found and stop.flush() == ""


def test_what_was_held_back_comes_at_the_end():
    stop = StopStrings(["###"])
    assert [stop.push("a#"), stop.push("#"), stop.flush(), stop.flush()] == ["a", "", "##", ""]
