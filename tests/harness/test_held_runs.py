"""Runs whose pictures are not in memory: killed in mid-epoch they end as if they never were."""

import json

import pytest
from killing import differences, log, outcome


@pytest.mark.slow
def test_a_streamed_run_that_is_killed_in_mid_epoch_ends_as_if_it_never_was(runs, place, arguments):
    command = [*arguments, "data.hold=stream", "data.workers=2"]
    command += ["data.random_resized_crop=[0.4,1]"]
    assert runs.run([*command, "hydra.run.dir=streamed"], place) == 0, log(place)
    expected = outcome(place / "streamed")
    assert expected["summary"]["data"]["fingerprint"].startswith("files-")

    killed = [*command, "hydra.run.dir=killed_stream", "resume=auto"]
    for count in (5, 7):  # in the first epoch, and in what is left of it or the second
        assert runs.run(killed, place, "batch", count=count) == -9, log(place)
    assert runs.run(killed, place) == 0, log(place)
    assert differences(expected, outcome(place / "killed_stream")) == []


@pytest.mark.slow
def test_begun_with_a_file_and_continued_in_memory_it_is_one_run(runs, place, arguments, whole):
    (place / "cache").mkdir()
    command = [*arguments, "hydra.run.dir=mapped", "resume=auto"]
    options = {"CVATTN_CACHE": str(place / "cache")}
    killed = runs.run([*command, "data.hold=mapped"], place, "batch", count=5, **options)
    assert killed == -9, log(place)
    assert runs.run([*command, "data.hold=memory"], place, **options) == 0, log(place)
    assert "decoding the 69 train images of" in log(place)
    found = outcome(place / "mapped")
    for key in ("state_dict", "optimizer_states", "metrics", "best"):
        assert differences(whole[key], found[key]) == []
    assert json.dumps(whole["summary"]["data"]) == json.dumps(found["summary"]["data"])
