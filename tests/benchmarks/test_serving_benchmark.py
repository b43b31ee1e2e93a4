"""The benchmark of serving starts real services, loads them, compares every answer and stops them."""

from __future__ import annotations

import pytest
from benchmark_scripts import run_script


@pytest.mark.slow
def test_every_answer_is_compared_and_a_line_printed_for_each_number_of_clients():
    lines, _ = run_script("serving.py", "--quick", "--signatures", "encode_image")
    assert [line["name"] for line in lines] == ["serving.encode_image.clients_1", "serving.encode_image.clients_4"]
    for line in lines:
        details = line["details"]
        assert details["sent"] == details["answered"] > 0 and not details["wrong"] and not details["lost"]
        assert line["ratio"] > 0 and details["ours_p99_ms"] >= details["ours_p50_ms"] > 0
    assert lines[1]["details"]["rows_a_call"]["joined"] > 1.0
    assert lines[1]["details"]["rows_a_call"]["one by one, 1 threads"] == 1.0
