"""A file's hash follows its content, not its date, and costs a read only when the file changed."""

import os
from pathlib import Path

from kv_transition.content_hash import cached_sha256, model_files, model_sha256
from kv_transition.files import sha256_file


def test_the_cached_hash_is_the_hash(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert (
        cached_sha256(file, tmp_path / "cache")
        == cached_sha256(file, tmp_path / "cache")
        == sha256_file(file)
    )


def test_new_content_of_the_same_size_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = cached_sha256(file, tmp_path / "cache")
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert cached_sha256(file, tmp_path / "cache") != first


def test_a_touched_file_keeps_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = cached_sha256(file, tmp_path / "cache")
    file.touch()
    assert cached_sha256(file, tmp_path / "cache") == first


def test_a_broken_cache_entry_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = cached_sha256(file, tmp_path / "cache")
    for entry in tmp_path.glob("cache/**/*.json"):
        entry.write_text("{")
    assert cached_sha256(file, tmp_path / "cache") == first


def test_a_model_is_its_weights_configuration_and_tokenizer_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            (tmp_path / name / file).write_text(file)
    (tmp_path / "here" / "README.md").write_text("a card")
    assert len(model_files(tmp_path / "here")) == 3
    first = model_sha256(tmp_path / "here", tmp_path / "cache")
    assert first == model_sha256(tmp_path / "there", tmp_path / "cache")
    (tmp_path / "there" / "tokenizer.json").write_text("another vocabulary")
    assert first != model_sha256(tmp_path / "there", tmp_path / "cache")
