"""Parts of a cohort, for jobs that know nothing of each other."""

import pytest
from tissnet_components.results.files import case_file
from tissnet_components.shards import remaining, shard_of

COHORT = [{"case": name} for name in "abcdefg"]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 9])
def test_all_parts_together_hold_every_case_once(parts):
    shared = [shard_of(COHORT, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(case["case"] for part in shared for case in part) == list("abcdefg")
    assert max(map(len, shared)) - min(map(len, shared)) <= 1


def test_without_a_part_a_job_has_every_case():
    assert shard_of(COHORT, None) == COHORT


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "-1/3", "a/b", "1/3/2", ""])
def test_a_part_that_there_is_not_is_refused(shard):
    with pytest.raises(ValueError, match=f"--shard is '{shard}', expected a part and the number of parts"):
        shard_of(COHORT, shard)


def test_a_job_that_resumes_has_what_is_not_finished_of_its_own_part(tmp_path):
    for name in ("seg", "summary"):
        file = case_file(tmp_path, "c", name)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    settings = {"output_dir": str(tmp_path), "outputs": ["seg", "summary"]}
    told = {resume: remaining(COHORT, "3/4", resume, **settings) for resume in (True, False)}
    assert told == {True: [{"case": "g"}], False: [{"case": "c"}, {"case": "g"}]}
