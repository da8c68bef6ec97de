"""A user's CSV file of points: common spellings of numbers are read, others refused."""

import numpy as np
import pytest

from experiments.sinusoid.user_points import PointsError, read_points


def read(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_points(path, ("x", "y"), at_least=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2,3\n", r"line 2: expected 2 cells, as the header has; received 3: '1,2,3'"),
        ("x,y\n1,5,2\n", "line 2: expected 2 cells"),  # a decimal comma
        ("x,y\n1,2,\n", "line 2: expected 2 cells"),
        ("x,y\n1_0,2\n", "line 2, column 'x': expected a number; received '1_0'"),
        ("x,y\n1,0x10\n", "expected a number; received '0x10'"),
        ("x,y\n\u0661,2\n", "expected a number; received"),  # digits of another script
        ("x,y\n1,2e\n", "expected a number; received '2e'"),
        ("x,y\n1,--2\n", "expected a number; received '--2'"),
        ("x,y\n1,+-nan\n", "expected a number"),
        ("x,y\n1,Infinity\n", "expected a finite number; received 'Infinity'"),
        ("x,y\n1,-INF\n", "expected a finite number"),
        ("x,y\n1,1e400\n", "expected a finite number"),
        ("x,y,x\n1,2,3\n", "line 1: the header must have one column 'x'; received 'x,y,x'"),
        ("x,y, Y\n1,2,3\n", "the header must have one column 'y'"),
        ("x;y\n1;2\n", "the header must have a column 'x'; received 'x;y'"),
        (b"x,y\n1,\xff\n", "is not a CSV text file"),
        ('x,y\n1,"2\n', "is not a CSV text file"),
        ("x,y\n1,\x1b[31m\n", r"received '\\x1b\[31m'"),
    ],
)
def test_invalid_rows_and_numbers(tmp_path, text, message):
    with pytest.raises(PointsError, match=message) as error:
        read(tmp_path, text)
    assert str(error.value).isprintable()


def test_common_spellings_of_numbers(tmp_path):
    text = "\ufeffx , y,note\n +1.,.5,a\n-2E+1,1e-3,b\n\n3,0,\n"
    np.testing.assert_allclose(read(tmp_path, text), [[1, 0.5], [-20, 0.001], [3, 0]])


def test_paths_that_are_not_files_are_named(tmp_path):
    with pytest.raises(PointsError, match="cannot be read: Is a directory"):
        read_points(tmp_path, ("x",), at_least=1)
