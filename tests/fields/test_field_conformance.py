import pytest
from field_members import FIELDS, OPTIONS

from cflow.testing import check_field


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_conforms(name):
    check_field(FIELDS[name](), **OPTIONS[name])
