import pytest
from map_members import maps

from cflow.testing import check_bijection

MAPS = maps()


@pytest.mark.parametrize("name", MAPS)
def test_maps_conform(name):
    bijection, arguments = MAPS[name]
    print(f"{name}: worst float32 round trip {check_bijection(bijection, **arguments):.2f} roundings")
