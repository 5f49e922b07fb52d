"""Where things are."""

from pathlib import Path

from kv_transition import paths


def test_everything_of_an_experiment_is_in_its_folder() -> None:
    assert paths.run_dir("e1") == Path("results/e1")
    assert paths.processed_dir("longbench__qasper", "e1") == Path("results/e1/data/qasper")
    files = paths.ExperimentPaths("e1")
    assert (
        files.responses("qasper", "snapkv/256", "000") == "results/e1/responses/qasper/snapkv/256/000.parquet"
    )
    assert files.manifest("{task}") == "results/e1/data/{task}/manifest.json"


def test_the_database_is_where_the_configuration_says() -> None:
    assert paths.db_path("e1") == Path("results/e1/kv_transition.sqlite")
    assert paths.db_path("e1", "auto") == Path("results/e1/kv_transition.sqlite")
    assert paths.db_path("e1", "elsewhere/my.sqlite") == Path("elsewhere/my.sqlite")


def test_a_response_file_says_whose_it_is() -> None:
    assert paths.cell_of_response("results/e1/responses/qasper/snapkv/f0.25/000.parquet") == (
        "snapkv",
        "f0.25",
    )


def test_shards_sort_by_name() -> None:
    assert paths.shard_names(11)[:3] == ["000", "001", "002"]
    assert paths.shard_names(11) == sorted(paths.shard_names(11))
