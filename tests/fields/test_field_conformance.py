import pytest
from field_members import DENOISERS, FIELDS, OPTIONS

from cflow.testing import check_denoiser, check_field


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_conforms(name):
    check_field(FIELDS[name](), **OPTIONS[name])


@pytest.mark.parametrize("name", DENOISERS)
def test_every_denoiser_conforms(name):
    check_denoiser(DENOISERS[name](), states=5, vocabulary=4, saved="adapted" not in name and "wrapped" not in name)
