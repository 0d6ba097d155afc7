"""Servers that differ in one hop or transport."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench_format import OURS
from loadtest.cluster.transports import CASES, VARIANTS, measure


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variable_that_makes_a_variant_is_one_that_ray_reads(variant):
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    constants = Path(ray.origin).with_name("serve").joinpath("_private/constants.py").read_text()
    assert all(f'"{name}"' in constants for name in variant.environment)
    assert variant.name == OURS or variant.environment or variant.options


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_case_is_measured_of_each_variant_and_compared_with_the_server_as_it_ships():
    report = measure(visits=1, per_client=1, console=Console(quiet=True), variants=VARIANTS[:2])
    assert {(row.case, row.system) for row in report.rows} == {
        (case, variant.name) for case in CASES for variant in VARIANTS[:2]
    }
    assert all(row.value > 0 for row in report.rows)
    assert [(ratio.case, ratio.ours_over) for ratio in report.ratios] == [(case, VARIANTS[1].name) for case in CASES]
