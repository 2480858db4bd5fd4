import pytest
from base_members import learned_and_given, members, name

from cflow.testing import check_base


@pytest.mark.parametrize("base", members() + learned_and_given(), ids=name)
def test_every_base_conforms(base):
    check_base(base)
